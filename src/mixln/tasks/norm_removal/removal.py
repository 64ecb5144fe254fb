"""Removing norms while a model trains: by the schedule, and by what the loss does."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from mixln.checked import NonNegativeInt, PositiveInt
from mixln.errors import InputError
from mixln.records import decode
from mixln.tasks.norm_removal.config import SpikePolicy
from mixln.tasks.norm_removal.install import FrozenNorms, find_frozen_norms
from mixln.tasks.norm_removal.schedule import NormPath, Removal
from mixln.training.callback import Callback, Run, StepRecord, Verdict

_WHERE = "the state of norm_removal in progress.json"


@dataclass
class RemovalProgress:
    """How far the removal of the norms is; anybody may have written the file that it is read from.

    Attributes:
        made: the removals so far, each with the step before which it was made.
        next_step: before which the next removal is due.
        reference: median loss of the steps before the last removal; None: there were none.
        losses: of the last steps without a spike.
        is_spiking: whether the loss of the last step was a spike.
        pace: the gaps are so many times those of the schedule.
        waited_steps: in which a removal was due, and was held up by a spike.
        num_roll_backs: so far.
    """

    made: list[NonNegativeInt]
    next_step: NonNegativeInt
    reference: float | None
    losses: list[float]
    is_spiking: bool
    pace: PositiveInt
    waited_steps: NonNegativeInt
    num_roll_backs: NonNegativeInt


class RemovalCallback(Callback):
    """Removes the norms of a model one after the other between its training steps.

    Args:
        removals: in their order.
        first_step: before which the first is due.
        policy: on spikes.

    Attributes:
        norms: of the model, from `begin` on.
        progress: what a checkpoint records.
    """

    needs_loss = True

    def __init__(self, removals: tuple[Removal, ...], first_step: int, policy: SpikePolicy) -> None:
        self._removals, self._first_step, self._policy = removals, first_step, policy
        self.norms: FrozenNorms | None = None
        self._step = 0
        self.restore({})  # the state of a run that begins

    @property
    def name(self) -> str:
        """The same for all subclasses, so that one goes on from another's checkpoint."""
        return "norm_removal"

    def begin(self, run: Run) -> None:
        """Find the norms of the model."""
        self.norms = find_frozen_norms(run.model)

    @property
    def is_complete(self) -> bool:
        """Whether everything has gone."""
        return len(self.progress.made) == len(self._removals)

    def before_step(self, step: int) -> None:
        """Make the removal that is due, unless a spike holds it up, as it does a run that goes on behind a stop."""
        self._step, progress = step, self.progress
        self._installed().begin_step()
        if not self._is_due(step):
            return
        if progress.is_spiking:
            progress.waited_steps += 1
            return
        removal = self._removals[len(progress.made)]
        self._make(removal)
        progress.made.append(step)
        progress.next_step = step + removal.gap * progress.pace
        progress.reference = statistics.median(progress.losses) if progress.losses else None

    def after_step(self, run: Run, record: StepRecord, good: Tensor) -> None:
        """Move the averages that norms are frozen at, by a step that counts; say how many removals have been made."""
        self._installed().finish_step(good, run.processes.sum_over_data)
        record.values["removals"] = len(self.progress.made)

    def wants_checkpoint(self) -> bool:
        """Before each removal, if it may have to be taken back."""
        return self._policy.action == "roll_back" and self._is_due(self._step + 1)

    def needed_checkpoints(self) -> tuple[int, ...]:
        """Those of before the last two removals: a spike may come much later, and another after going back."""
        return tuple(step - 1 for step in self.progress.made[-2:]) if self._policy.action == "roll_back" else ()

    def judge(self, record: StepRecord) -> Verdict | None:
        """Judge by the loss of the step; a validation loss that is not finite stands in its place."""
        validation_loss = float(record.values.get("validation_loss", 0.0))
        return self.judge_loss(record.step, float(record.loss) if math.isfinite(validation_loss) else validation_loss)

    def judge_loss(self, step: int, loss: float) -> Verdict | None:
        """See whether the loss is a spike, and what the policy says to one."""
        progress = self.progress
        was_spiking, progress.is_spiking = progress.is_spiking, self._is_spike(loss)
        if not progress.is_spiking:
            # a spike, however long, is nothing to compare with
            if math.isfinite(loss):
                progress.losses = [*progress.losses, loss][-self._policy.window :]
            return None
        # a run that goes on behind a stop is let through, but a step that is not finite needs a word each time
        is_let_through = self._policy.action == "stop" and was_spiking and math.isfinite(loss)
        if self._policy.action == "wait" or is_let_through:
            return None
        last = self._removals[len(progress.made) - 1]
        reason = (
            f"the loss rose to {loss:.4g} in step {step}, from {progress.reference:.4g} before {last} was removed "
            f"(step {progress.made[-1]})"
        )
        if self._policy.action == "stop":
            advice = "Another policy on spikes, or a higher threshold, goes on from here"
            return Verdict("stop", step, reason, advice=advice)
        if progress.num_roll_backs >= self._policy.max_roll_backs:
            reason += f", after {progress.num_roll_backs} roll-backs"
            return Verdict("stop", step, reason, advice="Slow the schedule down")
        return Verdict("go_back", step, reason, before=progress.made[-1] - 1)

    def state(self) -> dict[str, Any]:
        """Everything but what is in the norms' buffers."""
        return asdict(self.progress)  # a copy: checkpoints are written in the background

    def restore(self, state: dict[str, Any], *, rolled_back: bool = False) -> None:
        """Take up a state; after a roll-back, the pace stays as it is now, and the number of roll-backs.

        Raises:
            InputError: it is none that `state` gives.
        """
        beginning = RemovalProgress([], self._first_step, None, [], False, pace=1, waited_steps=0, num_roll_backs=0)
        progress = decode(RemovalProgress, state, _WHERE) if state else beginning
        if len(progress.made) > len(self._removals):
            raise InputError(f"{_WHERE}: {len(progress.made)} removals were made, of {len(self._removals)}")
        if rolled_back:
            progress.pace, progress.num_roll_backs = self.progress.pace, self.progress.num_roll_backs
        self._step, self.progress = 0, progress

    def learn(self, verdict: Verdict) -> None:
        """Put the next removal off after going back, and make the gaps twice as long from there."""
        if verdict.action != "go_back":
            return
        self.progress.num_roll_backs += 1
        self.progress.pace *= 2
        before = self._removals[max(0, len(self.progress.made) - 1)]
        self.progress.next_step += before.gap * self.progress.pace

    def result(self) -> dict[str, Any]:
        """Return what has been done, when, and at what price.

        Raises:
            InputError: norms are left.
        """
        waited, backs = self.progress.waited_steps, self.progress.num_roll_backs
        if not self.is_complete:
            why = [f"spikes held removals up in {waited} of them"] * bool(waited)
            why += [f"spikes took the run back {backs} times"] * bool(backs)
            raise InputError(
                f"the steps are over, and {len(self.progress.made)} of {len(self._removals)} removals are made: "
                f"{' and '.join(why) or 'they came too late'}. Start anew in another place with more steps, an earlier "
                "or slower schedule, a lower learning rate, or a higher threshold for spikes; metrics.jsonl and the "
                "checkpoints of this run are kept"
            )
        return {"made": list(self.progress.made), "waited_steps": waited, "num_roll_backs": backs}

    def _is_due(self, step: int) -> bool:
        return not self.is_complete and step >= self.progress.next_step

    def _is_spike(self, loss: float) -> bool:
        return self.progress.reference is not None and not loss <= self.progress.reference + self._policy.threshold

    def _make(self, removal: Removal) -> None:
        target, norms = removal.target, self._installed()
        if target in ("end_of_text", "first_position"):
            norms.merge(target)
        else:
            path: NormPath = target
            norms.freeze(path, removal.layer)

    def _installed(self) -> FrozenNorms:
        assert self.norms is not None, "the run has not begun"
        return self.norms
