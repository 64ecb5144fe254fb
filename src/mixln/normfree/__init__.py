"""Models without LayerNorm: removing it from a trained model, folding what is left, and what that shows."""

from mixln.normfree.attribution import LogitAttribution, direct_logit_attribution
from mixln.normfree.config import NormRemovalConfig
from mixln.normfree.entropy_neurons import EntropyNeurons, entropy_neurons
from mixln.normfree.fold import FoldReport, fold_norms, fold_norms_in_place, measure_fold
from mixln.normfree.frozen_norm import FrozenScaleNorm
from mixln.normfree.install import FrozenNorms, check_removable, install_frozen_norms
from mixln.normfree.patching import (
    PatchingAgreement,
    PatchingEffects,
    activation_patching,
    attribution_patching,
    patching_agreement,
)
from mixln.normfree.prompts import PromptPair, indirect_object_prompts, induction_prompts
from mixln.normfree.removal import RemovalIntervention, SpikePolicy
from mixln.normfree.schedule import PUBLISHED, Removal, RemovalSchedule, derived_schedule
from mixln.normfree.source import NormRemoval
from mixln.normfree.stream import Component
from mixln.normfree.transformer_lens import to_transformer_lens

__all__ = [
    "PUBLISHED",
    "Component",
    "EntropyNeurons",
    "FoldReport",
    "FrozenNorms",
    "FrozenScaleNorm",
    "LogitAttribution",
    "NormRemoval",
    "NormRemovalConfig",
    "PatchingAgreement",
    "PatchingEffects",
    "PromptPair",
    "Removal",
    "RemovalIntervention",
    "RemovalSchedule",
    "SpikePolicy",
    "activation_patching",
    "attribution_patching",
    "check_removable",
    "derived_schedule",
    "direct_logit_attribution",
    "entropy_neurons",
    "fold_norms",
    "fold_norms_in_place",
    "indirect_object_prompts",
    "induction_prompts",
    "install_frozen_norms",
    "measure_fold",
    "patching_agreement",
    "to_transformer_lens",
]
