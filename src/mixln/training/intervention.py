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
        before: the number of steps made when the run was still well; to go back to.
    """

    action: Literal["roll_back", "stop"]
    reason: str
    before: int = 0


class Intervention:
    """Nothing: what runs have that only train. Called by every process of a run.

    In every step: `before_step`, `after_step`, `values`, `wants_checkpoint`, `judge`; `needed_checkpoints` and `state`
    where a checkpoint is written.

    Attributes:
        needs_loss: whether `judge` must know a step's loss before the next step is made, for which a GPU has to wait.
    """

    needs_loss: bool = False

    def before_step(self, step: int) -> None:
        """Change the model, before a step, from 1."""

    def after_step(self, good: Tensor, reduce: Callable[[Tensor], Tensor]) -> None:
        """Take up what the model has seen in the step.

        Args:
            good: whether the step counts, a bool on the device; the update of another is left out.
            reduce: adds a tensor up over the processes.
        """

    def values(self) -> dict[str, float]:
        """Return what of this goes into the step's metrics."""
        return {}

    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint is to be written after this step, beside those that are due."""
        return False

    def needed_checkpoints(self) -> tuple[int, ...]:
        """Return the steps that a verdict may go back to: for each, the newest checkpoint of it or earlier is kept."""
        return ()

    def judge(self, step: int, loss: float) -> Verdict | None:
        """Take note of a step's loss, finite or not, and say if the run is not to go on.

        A validation loss that is not finite stands in the place of the loss of the step before it.

        Of a loss that is not finite, faults (`FaultConfig`) decide where this does not.
        """

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must know, beside the model's own buffers, as JSON."""
        return {}

    def restore(self, state: dict[str, Any], *, rolled_back: bool = False) -> None:
        """Take up `state`, {} at the beginning; after any roll-back, what was learned from earlier ones stays."""

    def put_off(self) -> None:
        """Learn from a roll-back that its own verdict has brought about; after `restore`."""
