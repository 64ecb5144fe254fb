"""What a comparison does with the runs of each kind of recipe: how they are measured, what they must beat, in words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from mixln.measure.batches import ModelBatch
from mixln.measure.performance import Performance
from mixln.report.results import ClassConstants, Constants, RunResult
from mixln.report.series import FigureSpec
from mixln.report.step_results import Quantity
from mixln.report.terms import Terms
from mixln.studies.measures import gradient_norm_at_init, growth, removal, similarity
from mixln.tasks.kinds import RecipeKind


class Baseline(ABC):
    """The constants that a run must beat, and runs beside them.

    Attributes:
        constants: what they have on the validation data.
    """

    constants: Constants | ClassConstants

    @abstractmethod
    def over(self, model: Any, batch_size: int, autocast_dtype: torch.dtype | None) -> dict[str, Any]:
        """Return what a model has over the constants on the validation data, as fields of `RunResult`.

        Args:
            model: a trained one.
            batch_size: rows at once.
            autocast_dtype: autocast to this; None: the model's own precision.
        """


class ComparedKind(ABC):
    """A kind of recipes in a comparison.

    Attributes:
        kind: the recipes.
        terms: the words of the report.
        quantities: that runs have beside the loss.
        constants_field: of `ComparisonResult`, that holds the constants.
        performance: what the depth measures cost.
    """

    kind: ClassVar[RecipeKind]
    terms: ClassVar[Terms] = Terms()
    quantities: ClassVar[Sequence[Quantity]] = ()
    constants_field: ClassVar[str]
    performance: ClassVar[Performance]

    @abstractmethod
    def baseline(self, data: Any) -> Baseline:
        """Return the constants that are known from the training data."""

    @abstractmethod
    def first_batch(self, task: Any) -> Mapping[str, Any]:
        """Return what a model is called with once, if the placement profiles its first batch."""

    @abstractmethod
    def gradient_batches(self, task: Any) -> list[ModelBatch]:
        """Return the rows that gradient norms at initialisation are measured on."""

    @abstractmethod
    def measured_batches(self, task: Any) -> list[ModelBatch]:
        """Return the validation rows that the depth measures run over."""

    @abstractmethod
    def validation_fields(self, validation: Any) -> dict[str, Any]:
        """Return what a run's last validation found, as fields of `RunResult`."""

    def curve_fields(self, lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Return the curves of other quantities than the loss, as fields of `RunResult`."""
        del lines
        return {}

    @abstractmethod
    def data_facts(self, recipe: Any, data: Any) -> dict[str, str]:
        """Return what is known of the data of all runs, for the report."""

    @abstractmethod
    def budget(self, recipe: Any, data: Any) -> str:
        """Return how long each run is, for the report."""

    @abstractmethod
    def measured_in_words(self, data: Any) -> str:
        """Return what the depth measures were measured on, for the report."""

    @abstractmethod
    def constant_facts(self, baseline: Any) -> dict[str, str]:
        """Return what the constants have, for the report."""

    def depth_figures(self) -> list[FigureSpec]:
        """Return the figures that a comparison draws of what each layer does."""
        return depth_figures()

    def is_measured(self, result: RunResult) -> bool:
        """Whether a result that was written before holds all that is measured today."""
        return result.over_constant is not None


def depth_figures() -> list[FigureSpec]:
    """The figures that a comparison draws of what each layer does, whatever its models are."""
    entries = (gradient_norm_at_init.ENTRY, similarity.ENTRY, removal.ENTRY, growth.ENTRY)
    return [figure for entry in entries for figure in entry.figures if figure.name != "block_influence"]
