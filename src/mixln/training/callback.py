"""What happens between the steps of a run, with state in its checkpoints, and the one way to judge a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from mixln.training.distributed import Processes
from mixln.training.objective import Evaluation


@dataclass
class StepRecord:
    """The numbers of one step. On a GPU they are still being computed when the step returns.

    Attributes:
        step: from 1.
        loss: per unit of weight, over the batches of all processes; a scalar.
        gradient_norm: before clipping; a scalar.
        weight: of the batch, over all processes.
        values: what else goes into the metrics, by name: numbers and scalars.
        urgent: whether its numbers are to be read at once, though a GPU has to be waited for.
    """

    step: int
    loss: Tensor
    gradient_norm: Tensor
    weight: int
    values: dict[str, float | Tensor] = field(default_factory=dict)
    urgent: bool = False


@dataclass(frozen=True)
class Verdict:
    """What a callback says of a step. None in its place: go on.

    Attributes:
        action: go_on: with a warning, of a step that counts. skip: with a warning, of a step whose update the device
            has refused (`Callback.accepts`), which the warning says. go_back: to a checkpoint, and on from there. stop:
            end the run.
        step: of which.
        reason: a sentence; empty: `Callback.explain` makes one.
        before: the number of steps made when the run was still well: the newest checkpoint of it or earlier is gone
            back to. If there is no checkpoint at all, that is the beginning.
        saved: by a stop: the state after the step; or before it, of a step whose update was refused; or nothing.
        advice: how to go on, said at the end of the message of a stop.
    """

    action: Literal["go_on", "skip", "go_back", "stop"]
    step: int
    reason: str = ""
    before: int = 0
    saved: Literal["after", "before", "nothing"] = "after"
    advice: str = ""


class Run(Protocol):
    """What callbacks can see of a run, and have it do; see `mixln.training.run.TrainingRun`."""

    folder: Path
    step: int
    weight: int
    processes: Processes
    optimizer: torch.optim.Optimizer
    autocast_dtype: torch.dtype | None

    @property
    def model(self) -> Any:
        """The model, without what is wrapped around it for training."""
        ...

    def rows(self, step: int) -> Sequence[int]:
        """Return the numbers of the rows in the whole batch of a step, from 1; empty: the task has none."""
        ...

    def layers(self) -> list[tuple[str, nn.Parameter]]:
        """Return every parameter with the name of the layer that it is measured in."""
        ...

    def activations(self) -> dict[str, Tensor]:
        """Measure what goes through the layers on the batch of the last step."""
        ...

    def validate(self) -> Evaluation:
        """Return the task's evaluation of the model."""
        ...

    def find_fault(self, step: int) -> str:
        """Compute a step, from 1, again, and return in words where it goes wrong first."""
        ...

    def description(self) -> dict[str, Any]:
        """Return what is trained, and how, as JSON."""
        ...


class Callback:
    """What happens between the steps of a run; this one does nothing. Every process of a run calls every method.

    The life of a callback: `begin`; `restore`, if the run goes on from a checkpoint; `start`; then in each step
    `skips`, `before_step`, `after_backward`, `accepts`, `after_step`, `end_step`; `judge` when the numbers of the step
    are read, which on a GPU is one step later; `wants_checkpoint`. `flush`, `needed_checkpoints`, `state` and `tensors`
    where a checkpoint is written. After the run has gone back: `begin`, if it is at its beginning, `restore` and
    `rewind`. In the end `result`, if all steps are made, and `close`.

    Processes may differ in what they answer in `judge` and `wants_checkpoint` (they may look at the time, say): all
    follow the first process that has a verdict, and a checkpoint is written if any wants one. `skips` must be a
    function of the step and of `state`, so that all answer alike.

    Attributes:
        needs_loss: whether `judge` has to know the loss of a step before the next step is made.
    """

    needs_loss: bool = False

    @property
    def name(self) -> str:
        """What its state is called in checkpoints: each of a run has another name."""
        return type(self).__name__

    def identity(self) -> dict[str, Any]:
        """Return what may not change when a run is resumed, as JSON; it stands in `recipe.json` beside the name."""
        return {}

    def begin(self, run: Run) -> None:
        """Look at a run whose model has its initial weights, as `Task.adapt` has left them. Also called before a
        checkpoint is restored (without `Task.adapt`), and again when the run goes back to the beginning."""

    def start(self, run: Run) -> None:
        """Prepare for the first step that this process makes: the run is at its beginning, or at a checkpoint."""

    def skips(self, step: int) -> bool:
        """Whether a step, from 1, is to be left out before it is made."""
        del step
        return False

    def before_step(self, step: int) -> None:
        """Change the model (weights and buffers, not `requires_grad`), before a step, from 1."""

    def after_backward(self, run: Run, step: int) -> None:
        """Look at the gradients of the whole batch, or change them, before they are clipped.

        The update leaves a parameter alone whose `grad` is None.
        """

    def accepts(self, step: int, gradient_norm: Tensor) -> Tensor | None:
        """Return whether the update may be made, a bool on the device; None: it may. Nobody waits for the device.

        If loss or gradient norm is not finite it is refused anyway.
        """

    def after_step(self, run: Run, record: StepRecord, good: Tensor) -> None:
        """Take up what the step has done, and add to the values of its record.

        Args:
            run: after the update.
            record: of the step.
            good: whether the update was made, a bool on the device.
        """

    def end_step(self, run: Run, record: StepRecord) -> None:
        """Do what is not part of the step, and not of the time that it took."""

    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint is to be written after this step, beside those that are due."""
        return False

    def judge(self, record: StepRecord) -> Verdict | None:
        """Take note of the numbers of a step, and say if the run is not simply to go on.

        All callbacks see a record before the run acts on it; it acts on the verdict of the first that has one.
        """

    def explain(self, verdict: Verdict) -> str:
        """Return the reason of a verdict that the run acts on, a sentence; it may be computed for this."""
        return verdict.reason

    def learn(self, verdict: Verdict) -> None:
        """Learn from what the run has done on its verdict: after it has gone back, or before it stops."""

    def flush(self) -> None:
        """Put on disk what has been written, so that a checkpoint never knows of later steps."""

    def needed_checkpoints(self) -> Iterable[int]:
        """Return the steps that a verdict may go back to: for each, the newest checkpoint of it or earlier is kept."""
        return ()

    def state(self) -> dict[str, Any]:
        """Return what a resumed run has to know, as JSON; no part of it may change later."""
        return {}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return its tensors by name, themselves and no copies: saved with `state`, and overwritten before `restore`.

        They exist from `begin` on.
        """
        return {}

    def restore(self, state: dict[str, Any], *, rolled_back: bool = False) -> None:
        """Take up `state`, {} at the beginning; what was learned from faults stays if the run has gone back."""

    def rewind(self, run: Run) -> None:
        """Forget the steps after `run.step`: the run has gone back there, and makes them again."""

    def result(self) -> dict[str, Any]:
        """Return what is part of the result of a run whose steps are made, as JSON, under names of its own.

        Raises:
            InputError: the run has not done what it was for.
        """
        return {}

    def close(self) -> None:
        """End, whatever has happened, also in other callbacks."""
