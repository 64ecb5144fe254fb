"""Gradient norm of each layer at the given weights."""

from __future__ import annotations

from collections.abc import Sequence

from mixln.measure.batches import ModelBatch, first_tokens
from mixln.measure.gradients import documents_of, gradient_norms
from mixln.measure.performance import Loss
from mixln.models.anatomy import BlockStack
from mixln.report.series import ColumnSpec, FigureSpec
from mixln.studies.measuring import Computed, Found, Given, series_of
from mixln.studies.stages import Steps


class GradientNorms(Computed):
    """The gradient norms of the layers of one model that has a loss.

    Args:
        name: of the entry and of its series.
        rank: of the entry.
        columns: of the series.
    """

    figures = (
        FigureSpec(
            "gradient_norm",
            "Gradient norm by layer",
            "L2 norm of the loss gradient over all parameters of a layer: at the given weights, or at initialisation "
            "where the figure says so.",
            "At initialisation Pre-LN typically falls with depth, and Post-LN rises.",
            "lines",
            {"gradient_norm": "", "gradient_norm_at_init": "at initialisation"},
            y="Gradient norm (L2)",
        ),
    )

    def __init__(self, name: str, rank: int, *columns: ColumnSpec) -> None:
        self.name, self.rank, self.columns = name, rank, columns

    def is_wanted(self, given: Given) -> bool:
        """Whether there is a loss to take gradients of, and the measure is asked for."""
        return (
            isinstance(given.performance, Loss)
            and given.config.gradient_tokens > 0
            and given.config.asks_for(self.name)
        )

    def measured_stack(self, given: Given) -> BlockStack:
        """The blocks of the model that gradients are taken of."""
        return given.stack

    def compute(self, given: Given, batches: Sequence[ModelBatch]) -> Found:
        """As one series, or a note if weights are offloaded.

        Raises:
            InputError: no position with a target, or no fresh model can be made.
        """
        stack = self.measured_stack(given)
        if any(parameter.is_meta for parameter in stack.layers.parameters()):
            return Found(
                [], [f"Weights are offloaded (device_map) and take no gradients, so {self.name} was left out."]
            )
        some = first_tokens(batches, given.config.gradient_tokens)
        return self.of(stack, some, given)

    def of(self, stack: BlockStack, batches: Sequence[ModelBatch], given: Given, *, intervals: bool = True) -> Found:
        """The series of these blocks on all of these batches; for intervals, they are gone through twice."""
        total = sum(1 + intervals * len(documents_of(batch)) for batch in batches)
        steps = Steps(self.name.replace("_", " "), total, given.report)
        loss = given.performance
        assert isinstance(loss, Loss)
        norms = gradient_norms(
            stack, batches, loss, autocast_dtype=given.autocast_dtype, intervals=intervals, tick=steps
        )
        return Found([series_of(self.name, "layer", f"{loss.unit} and unit of weight", norms)])


ENTRY = GradientNorms("gradient_norm", 100, ColumnSpec("gradient norm", "gradient_norm", ".3g"))
