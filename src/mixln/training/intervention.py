"""What is done to a model between the steps of its training, by plan: so far, the removal of norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """What an intervention says of a step's loss, if the run is not simply to go on.

    Attributes:
        action: roll_back: go to the newest checkpoint of `before` or earlier, and on from there; stop: end the run.
        reason: a sentence.
        before: the number of steps made when the run was still well.
    """

    action: Literal["roll_back", "stop"]
    reason: str
    before: int


class Intervention:
    """Nothing: what runs have that only train. Called by every process of a run, in this order, for every step.

    Attributes:
        needs_loss: whether `judge` must know a step's loss before the next step is made, for which a GPU has to wait.
    """

    needs_loss: bool = False

    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint is to be written after this step, beside those that are due."""
        return False

    def before_step(self, step: int) -> None:
        """Change the model, before a step, from 1."""

    def after_step(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Take up what the model has seen in the step; `reduce` adds a tensor up over the processes."""

    def values(self) -> dict[str, float]:
        """Return what of this goes into the step's metrics."""
        return {}

    def judge(self, step: int, loss: float) -> Verdict | None:
        """Take note of a step's loss, and say if the run is not to go on."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must know, beside the model's own buffers, as JSON."""
        return {}

    def restore(self, state: dict[str, Any], *, rolled_back: bool = False) -> None:
        """Take up `state`, {} at the beginning; after a roll-back, what was learned from it stays."""
