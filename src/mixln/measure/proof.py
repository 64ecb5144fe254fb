"""The proof, made on the first batch of every measurement, that replays are what the model itself would compute.

Whether blocks keep something beside their outputs (a cache, states of a recurrence, keys and values for other layers)
cannot be known from a model's name. So some interventions of each kind are run both ways, and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from mixln.errors import InputError
from mixln.measure.comparison import difference, main_output, rounding
from mixln.measure.execution import replayed, whole_pass
from mixln.measure.interventions import Family, Intervention
from mixln.measure.observation import Observation, observed
from mixln.measure.sublayers import SublayerFinder
from mixln.models.anatomy import BlockStack
from mixln.models.foreign import ModelCallError

_ROWS = 2
"""Of the first batch, that the proof is made on."""

Run = Callable[[Observation, Intervention, SublayerFinder], Any]
"""A way to run a changed model; returns its output."""


class ProvenExecution:
    """Runs interventions: replayed if that was proven to be what the model computes, in whole passes if it was not.

    The proof covers every family that has been added when the first output is asked for. If it fails for one family,
    all of them run in whole passes.

    Args:
        sublayers: if they are found already.

    Attributes:
        reason_against_replays: why all run in whole passes, in a sentence; empty: they are replayed; None: nothing was
            proven yet.
    """

    def __init__(self, sublayers: SublayerFinder | None = None) -> None:
        self.sublayers = sublayers or SublayerFinder()
        self._families: list[Family] = []
        self.reason_against_replays: str | None = None

    def add(self, family: Family) -> None:
        """Let the proof cover a family."""
        self._families.append(family)

    def is_about_sublayers(self, num_blocks: int) -> bool:
        """Whether an intervention of a family silences a sublayer."""
        return any(intervention.silent for family in self._families for intervention in family(num_blocks))

    def outputs(self, observation: Observation, family: Family) -> Iterator[Any]:
        """The model's output for each intervention of a family, or the error of a model that cannot run that way.

        Raises:
            InputError: not even whole passes of one changed model agree with each other.
        """
        if self.reason_against_replays is None:
            self.reason_against_replays = prove(observation, self._families, self.sublayers)
        run = whole_pass if self.reason_against_replays else replayed
        for intervention in family(len(observation.stack.layers)):
            yield _output_or_error(run, observation, intervention, self.sublayers)


def prove(observation: Observation, families: list[Family], sublayers: SublayerFinder) -> str:
    """Run the first, middle and last intervention of each family both ways, on two rows, and compare the outputs.

    Cost: two forward passes of two rows, and at most seven for each family.

    Args:
        observation: of the first batch.
        families: to prove.
        sublayers: found already, if a family is about them.

    Returns:
        Why changed models cannot be replayed, in a sentence; empty if they can.

    Raises:
        InputError: two whole passes of the same model, changed or not, differ by more than rounding.
    """
    stack = observation.stack
    few = (
        observation if len(observation.batch.documents) <= _ROWS else observed(stack, observation.batch.rows(0, _ROWS))
    )
    plain = main_output(few.batch.run(stack.model))
    allowed = rounding(stack.layers.parameters(), plain)
    noise = difference(plain, main_output(few.batch.run(stack.model)))
    _require_repeatable(stack, noise, allowed, "the model as it is")
    reason = ""
    for family in families:
        interventions = family(len(stack.layers))
        middle = len(interventions) // 2
        for index in sorted({0, middle, len(interventions) - 1}):
            intervention = interventions[index]
            whole = _main_output_or_none(whole_pass, few, intervention, sublayers)
            if index == middle and whole is not None:
                again = _main_output_or_none(whole_pass, few, intervention, sublayers)
                _require_repeatable(stack, difference(whole, again), allowed, "the same changed model")
            if reason:
                continue
            replay = _main_output_or_none(replayed, few, intervention, sublayers)
            if not (off := difference(whole, replay)) <= max(allowed, 4 * noise):
                reason = (
                    f"Blocks of this {type(stack.model).__name__} keep something beside their outputs: run again from "
                    f"recorded states, a changed model gives another output than in a forward pass of its own (off by "
                    f"{off:.2g}). So every changed model was run as a whole forward pass."
                )
    return reason


def _main_output_or_none(
    run: Run, observation: Observation, intervention: Intervention, sublayers: SublayerFinder
) -> Tensor | None:
    """What the changed model gives; None if it cannot run."""
    output = _output_or_error(run, observation, intervention, sublayers)
    return None if isinstance(output, ModelCallError) else main_output(output)


def _output_or_error(run: Run, observation: Observation, intervention: Intervention, sublayers: SublayerFinder) -> Any:
    try:
        return run(observation, intervention, sublayers)
    except ModelCallError as error:
        return error


def _require_repeatable(stack: BlockStack, off: float, allowed: float, what: str) -> None:
    if not off <= 8 * allowed:
        raise InputError(
            f"two forward passes of {what} on the same input differ by {off:.2g}: this {type(stack.model).__name__} "
            "draws random numbers, or keeps something from one pass to the next, so the cost of a change cannot be "
            "measured. Give a model whose output depends on its input alone"
        )
