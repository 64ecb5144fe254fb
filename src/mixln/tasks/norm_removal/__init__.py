"""Removing the norms of a trained model: their scales are frozen one after the other, and folded away in the end."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.tasks.norm_removal.config import NormRemovalConfig, SpikePolicy
    from mixln.tasks.norm_removal.fold import FoldReport, fold_norms, fold_norms_in_place, measure_fold
    from mixln.tasks.norm_removal.frozen_norm import FrozenScaleNorm
    from mixln.tasks.norm_removal.install import (
        FrozenNorms,
        check_norms_removable,
        find_frozen_norms,
        install_frozen_norms,
    )
    from mixln.tasks.norm_removal.removal import RemovalCallback
    from mixln.tasks.norm_removal.schedule import PUBLISHED, Removal, RemovalSchedule, derived_schedule
    from mixln.tasks.norm_removal.task import NormRemoval
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "PUBLISHED",
    "FoldReport",
    "FrozenNorms",
    "FrozenScaleNorm",
    "NormRemoval",
    "NormRemovalConfig",
    "Removal",
    "RemovalCallback",
    "RemovalSchedule",
    "SpikePolicy",
    "check_norms_removable",
    "derived_schedule",
    "find_frozen_norms",
    "fold_norms",
    "fold_norms_in_place",
    "install_frozen_norms",
    "measure_fold",
]
