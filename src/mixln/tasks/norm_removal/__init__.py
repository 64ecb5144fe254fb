"""Removing the norms of a trained model: their scales are frozen one after the other, and folded away in the end."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.tasks.norm_removal.config import NormRemovalConfig as NormRemovalConfig
    from mixln.tasks.norm_removal.fold import fold_norms as fold_norms
    from mixln.tasks.norm_removal.fold import fold_norms_in_place as fold_norms_in_place
    from mixln.tasks.norm_removal.install import FrozenNorms as FrozenNorms
    from mixln.tasks.norm_removal.install import check_norms_removable as check_norms_removable
    from mixln.tasks.norm_removal.install import install_frozen_norms as install_frozen_norms
    from mixln.tasks.norm_removal.task import NormRemoval as NormRemoval
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
