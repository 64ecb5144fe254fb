"""Models without LayerNorm: removing it from a trained model, folding what is left, and what that shows."""

from mixln.normfree.config import NormRemovalConfig
from mixln.normfree.fold import FoldReport, fold_norms, fold_norms_in_place, measure_fold
from mixln.normfree.frozen_norm import FrozenScaleNorm
from mixln.normfree.install import FrozenNorms, check_removable, install_frozen_norms
from mixln.normfree.removal import RemovalIntervention, SpikePolicy
from mixln.normfree.schedule import PUBLISHED, Removal, RemovalSchedule, derived_schedule
from mixln.normfree.source import NormRemoval
from mixln.normfree.transformer_lens import to_transformer_lens

__all__ = [
    "PUBLISHED",
    "FoldReport",
    "FrozenNorms",
    "FrozenScaleNorm",
    "NormRemoval",
    "NormRemovalConfig",
    "Removal",
    "RemovalIntervention",
    "RemovalSchedule",
    "SpikePolicy",
    "check_removable",
    "derived_schedule",
    "fold_norms",
    "fold_norms_in_place",
    "install_frozen_norms",
    "measure_fold",
    "to_transformer_lens",
]
