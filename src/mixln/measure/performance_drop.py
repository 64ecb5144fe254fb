"""What a change of a model's layers costs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch
from mixln.measure.estimates import DocumentSums, Estimates, ratio_estimates
from mixln.measure.interventions import Family
from mixln.measure.observation import Measure, Observation
from mixln.measure.performance import BatchPerformance, Performance
from mixln.measure.proof import ProvenExecution
from mixln.models.anatomy import BlockStack
from mixln.models.foreign import ModelCallError


class _Judge:
    """Sums of one performance."""

    def __init__(self, performance: Performance) -> None:
        self.performance = performance
        self.drops = DocumentSums()
        self.whole = DocumentSums()
        self.judged: BatchPerformance | None = None

    def of_batch(self) -> BatchPerformance:
        """The performance on the batch whose output was seen."""
        assert self.judged is not None
        return self.judged


class PerformanceDrop(Measure):
    """dP = P(changed model) - P(whole model), for a family of interventions; positive means harm.

    Performance drop of Mix-LN (Li, Yin, Liu 2024, arXiv 2412.13795), section 2, with any `Performance`. All
    interventions of a batch share its forward pass: removing each of L blocks costs (L - 1) / 2 forward passes of the
    blocks, and what comes before and after them L times. That this is what the changed models compute is proven on
    the first batch; if it is not, each is run as a whole forward pass (`mixln.measure.proof`).

    The drop is infinite where the changed model's performance is not finite, and nan where no model can run that way;
    `failures` says why.

    Args:
        interventions: from the number of blocks to the family.
        performance: what is measured; kept under this name.
        execution: how interventions are run, shared by measures that share one proof; None: its own.
        beside: other performances that are measured of the same outputs, by name.
    """

    def __init__(
        self,
        interventions: Family,
        performance: Performance,
        execution: ProvenExecution | None = None,
        beside: Mapping[str, Performance] | None = None,
    ) -> None:
        self._family = interventions
        self.performance = performance
        self.failures: dict[int, str] = {}
        """By the number of the intervention, from 1: why the model cannot run that way."""
        self._judges = {"": _Judge(performance)} | {name: _Judge(own) for name, own in (beside or {}).items()}
        self.execution = execution or ProvenExecution()
        self.execution.add(interventions)
        self._number = 0

    @property
    def has_values(self) -> bool:
        """Whether the model can run with one of the changes at least."""
        return len(self.failures) < self._number

    def watch(self, stack: BlockStack) -> AbstractContextManager[object]:
        """Find the sublayers, if an intervention is about one."""
        needed = self.execution.is_about_sublayers(len(stack.layers))
        return self.execution.sublayers.watch(stack) if needed else nullcontext()

    def see_output(self, output: object, batch: ModelBatch) -> None:
        """Judge the whole model."""
        for judge in self._judges.values():
            judge.judged = judge.performance.on(output, batch)

    def num_ticks(self, num_blocks: int) -> int:
        """One for each intervention."""
        return len(self._family(num_blocks))

    def update(self, observation: Observation) -> None:
        """Count a batch.

        Raises:
            InputError: the model's output is not determined by its input.
        """
        batch = observation.batch
        judges = self._judges.values()

        def harm(numbered: tuple[int, object]) -> Tensor:
            """(judges, rows)."""
            number, output = numbered
            observation.tick()
            if not isinstance(output, ModelCallError):
                return torch.stack([judge.of_batch().harm(output) for judge in judges])
            self.failures.setdefault(number, output.reason)
            return torch.full((len(judges), len(batch.documents)), torch.nan, dtype=torch.float64)

        # not in a loop, whose variable would hold one output while the next is computed
        harms = list(map(harm, enumerate(self.execution.outputs(observation, self._family), start=1)))
        self._number = len(harms)
        for judge, drops in zip(judges, torch.stack(harms, dim=-1), strict=True):
            own = judge.of_batch()
            judge.drops.update(drops, own.counts, batch.documents)
            judge.whole.update(own.whole, own.counts, batch.documents)

    def drop(self, of: str = "") -> Estimates:
        """One number for each intervention, in the order of the family.

        Args:
            of: the name of a performance of `beside`; empty: the performance itself.

        Raises:
            InputError: nothing was counted, or the model cannot run with any of the changes.
        """
        if self._number and not self.has_values:
            raise InputError(
                f"the model cannot run with any of {self._number} changes of its blocks ({self.failures[1]}). Leave "
                "this measure out"
            )
        return self._judges[of].drops.estimate()

    def changed(self, of: str = "") -> Estimates:
        """P of the changed models, one number for each intervention: P of the whole model + dP.

        Args:
            of: as for `drop`.

        Raises:
            InputError: nothing was counted.
        """
        judge = self._judges[of]
        (drops, counts), (whole, _) = judge.drops.stacked(), judge.whole.stacked()
        return ratio_estimates(drops + whole[:, None], counts)

    def whole(self, of: str = "") -> Estimates:
        """P of the whole model, shape ().

        Args:
            of: as for `drop`.

        Raises:
            InputError: nothing was counted.
        """
        return self._judges[of].whole.estimate()
