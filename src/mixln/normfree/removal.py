"""Removing norms while a model trains: by the schedule, and by what the loss does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mixln.errors import InputError
from mixln.normfree.frozen_norm import NormPath
from mixln.normfree.install import FrozenNorms
from mixln.normfree.schedule import Removal
from mixln.training.intervention import Intervention, Verdict


@dataclass(frozen=True)
class SpikePolicy:
    """What to do when a removal makes the training loss spike. It may change when an interrupted run is taken up.

    Attributes:
        action: wait: remove nothing more until the spike is over; roll_back: go back to before the removal, and remove
            from there on at half the pace; stop: end the run.
        threshold: a spike is a loss that many nats above the median of the steps before the last removal, or one that
            is not finite.
        window: so many steps.
        max_roll_backs: stop after so many.
    """

    action: Literal["wait", "roll_back", "stop"] = "wait"
    threshold: float = 0.5
    window: int = 20
    max_roll_backs: int = 5

    def check(self) -> None:
        """Raise InputError if a number is out of range."""
        if not self.threshold > 0:
            raise InputError(f"spike_threshold must be more than 0, not {self.threshold}")
        for name in ("window", "max_roll_backs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")


class RemovalIntervention(Intervention):
    """Removes the norms of a model one after the other between its training steps.

    Args:
        removals: in their order.
        first_step: before which the first is due.
        policy: on spikes.

    Attributes:
        norms: of the model; to be set when it is built.
        made: the removals so far, each with the step before which it was made.
        waited_steps: in which a removal was due, and was held up by a spike.
        num_roll_backs: so far.
    """

    needs_loss = True

    def __init__(self, removals: tuple[Removal, ...], first_step: int, policy: SpikePolicy) -> None:
        self._removals, self._first_step, self._policy = removals, first_step, policy
        self.norms: FrozenNorms | None = None
        self.num_roll_backs = 0
        self._pace = 1
        self.restore({})  # the state of a run that begins

    @property
    def is_complete(self) -> bool:
        """Whether everything has gone."""
        return len(self.made) == len(self._removals)

    @property
    def num_removals(self) -> int:
        """Everything that is to go."""
        return len(self._removals)

    def before_step(self, step: int) -> None:
        """Make the removal that is due, unless a spike holds it up, as it does a run that goes on behind a stop."""
        self._step = step
        self._installed().begin_step()
        if not self._is_due(step):
            return
        if self._is_spiking:
            self.waited_steps += 1
            return
        removal = self._removals[len(self.made)]
        self._make(removal)
        self.made.append(step)
        self._next_step = step + removal.gap * self._pace
        self._reference = statistics.median(self._losses) if self._losses else None

    def after_step(self, good: Tensor, reduce: Callable[[Tensor], Tensor]) -> None:
        """Move the averages that norms are frozen at, by a step that counts."""
        self._installed().finish_step(good, reduce)

    def values(self) -> dict[str, float]:
        """How many removals have been made."""
        return {"removals": len(self.made)}

    def wants_checkpoint(self) -> bool:
        """Before each removal, if it may have to be taken back."""
        return self._policy.action == "roll_back" and self._is_due(self._step + 1)

    def needed_checkpoints(self) -> tuple[int, ...]:
        """Those of before the last two removals: a spike may come much later, and another after going back."""
        return tuple(step - 1 for step in self.made[-2:]) if self._policy.action == "roll_back" else ()

    def judge(self, step: int, loss: float) -> Verdict | None:
        """See whether the loss is a spike, and what the policy says to one."""
        was_spiking, self._is_spiking = self._is_spiking, self._is_spike(loss)
        if not self._is_spiking:
            # a spike, however long, is nothing to compare with
            if math.isfinite(loss):
                self._losses = [*self._losses, loss][-self._policy.window :]
            return None
        # a run that goes on behind a stop is let through, but a step that is not finite needs a word each time
        is_let_through = self._policy.action == "stop" and was_spiking and math.isfinite(loss)
        if self._policy.action == "wait" or is_let_through:
            return None
        last = self._removals[len(self.made) - 1]
        reason = (
            f"the loss rose to {loss:.4g} in step {step}, from {self._reference:.4g} before {last} was removed (step "
            f"{self.made[-1]})"
        )
        if self._policy.action == "stop":
            return Verdict("stop", f"{reason}. Another policy on spikes, or a higher threshold, goes on from here")
        if self.num_roll_backs >= self._policy.max_roll_backs:
            return Verdict("stop", f"{reason}, after {self.num_roll_backs} roll-backs. Slow the schedule down")
        return Verdict("roll_back", reason, self.made[-1] - 1)

    def state(self) -> dict[str, Any]:
        """Everything but what is in the norms' buffers."""
        return {
            # copies: checkpoints are written in the background
            "made": list(self.made),
            "next_step": self._next_step,
            "reference": self._reference,
            "losses": list(self._losses),
            "is_spiking": self._is_spiking,
            "pace": self._pace,
            "waited_steps": self.waited_steps,
            "num_roll_backs": self.num_roll_backs,
        }

    def restore(self, state: dict[str, Any], *, rolled_back: bool = False) -> None:
        """Take up a state; after a roll-back, the pace stays as it is now, and the number of roll-backs."""
        self._step = 0
        self.made: list[int] = list(state.get("made", []))
        self._next_step = int(state.get("next_step", self._first_step))
        self._reference: float | None = state.get("reference")
        self._losses: list[float] = list(state.get("losses", []))
        self._is_spiking = bool(state.get("is_spiking", False))
        self.waited_steps = int(state.get("waited_steps", 0))
        if not rolled_back:
            self._pace, self.num_roll_backs = int(state.get("pace", 1)), int(state.get("num_roll_backs", 0))

    def put_off(self) -> None:
        """Put the next removal off, and make the gaps twice as long from there."""
        self.num_roll_backs += 1
        self._pace *= 2
        before = self._removals[max(0, len(self.made) - 1)]
        self._next_step += before.gap * self._pace

    def _is_due(self, step: int) -> bool:
        return not self.is_complete and step >= self._next_step

    def _is_spike(self, loss: float) -> bool:
        return self._reference is not None and not loss <= self._reference + self._policy.threshold

    def _make(self, removal: Removal) -> None:
        target, norms = removal.target, self._installed()
        if target in ("end_of_text", "first_position"):
            norms.merge(target)
        else:
            path: NormPath = target
            norms.freeze(path, removal.layer)

    def _installed(self) -> FrozenNorms:
        assert self.norms is not None, "the model has not been built"
        return self.norms
