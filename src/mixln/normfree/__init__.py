"""Models without LayerNorm: removing it from a trained model, folding what is left, and what that shows."""

from mixln.normfree.fold import FoldReport, fold_norms, fold_norms_in_place, measure_fold
from mixln.normfree.frozen_norm import FrozenScaleNorm
from mixln.normfree.install import FrozenNorms, check_removable, install_frozen_norms

__all__ = [
    "FoldReport",
    "FrozenNorms",
    "FrozenScaleNorm",
    "check_removable",
    "fold_norms",
    "fold_norms_in_place",
    "install_frozen_norms",
    "measure_fold",
]
