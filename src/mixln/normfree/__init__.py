"""Models without LayerNorm: removing it from a trained model, folding what is left, and what that shows."""

from mixln.normfree.frozen_norm import FrozenScaleNorm
from mixln.normfree.install import FrozenNorms, check_removable, install_frozen_norms
from mixln.normfree.transformer_lens import to_transformer_lens

__all__ = ["FrozenNorms", "FrozenScaleNorm", "check_removable", "install_frozen_norms", "to_transformer_lens"]
