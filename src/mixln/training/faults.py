"""Steps that go wrong: seeing them, and deciding what to do."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from mixln.training.config import FaultConfig

Action = Literal["stop", "skip", "roll_back"]


class TrainingDivergedError(RuntimeError):
    """The loss or the gradient went wrong, and the policy, or the number of faults, says to stop."""


@dataclass
class FaultWatch:
    """Looks at each step's loss and gradient norm.

    Attributes:
        config: the policy.
        recent_norms: gradient norms of the last good steps, as many as the window.
        skipped_steps: steps not to be made, since they went wrong before a roll-back.
        num_faults: faults so far.
    """

    config: FaultConfig
    recent_norms: deque[float] = field(default_factory=deque)
    skipped_steps: set[int] = field(default_factory=set)
    num_faults: int = 0

    @property
    def largest_norm(self) -> float:
        """The gradient norm above which a step is a spike: factor * median of the recent ones; at first infinite.

        Known before the step, so that the device can refuse a bad update by itself.
        """
        if self.config.on_gradient_spike == "ignore" or len(self.recent_norms) < self.config.gradient_spike_window:
            return math.inf
        return self.config.gradient_spike_factor * statistics.median(self.recent_norms)

    def judge(self, step: int, loss: float, gradient_norm: float, largest_norm: float) -> Fault | None:
        """Return what is wrong with a step, or None; `largest_norm` as it was when the step was made."""
        if not math.isfinite(loss):
            return self._fault(step, "the training loss", loss, self.config.on_non_finite)
        if not math.isfinite(gradient_norm):
            return self._fault(step, "the gradient norm", gradient_norm, self.config.on_non_finite)
        if gradient_norm > largest_norm and self.config.on_gradient_spike != "ignore":
            return self._fault(step, "the gradient norm", gradient_norm, self.config.on_gradient_spike)
        self.recent_norms.append(gradient_norm)
        while len(self.recent_norms) > self.config.gradient_spike_window:
            self.recent_norms.popleft()
        return None

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must know to judge as this one does."""
        return {
            "recent_norms": list(self.recent_norms),
            "skipped_steps": sorted(self.skipped_steps),
            "num_faults": self.num_faults,
        }

    def restore(self, state: dict[str, Any], *, rolled_back: bool = False) -> None:
        """Take up `state`; after a roll-back, faults and the steps to skip stay as they are now."""
        self.recent_norms = deque(state["recent_norms"])
        if not rolled_back:
            self.skipped_steps, self.num_faults = set(state["skipped_steps"]), int(state["num_faults"])

    def forget(self) -> None:
        """Take back the last fault, whose step is to count as not made."""
        self.num_faults -= 1

    def _fault(self, step: int, what: str, value: float, policy: str) -> Fault:
        self.num_faults += 1
        action: Action = "roll_back" if policy == "roll_back" else "skip" if policy == "skip" else "stop"
        excess = self.num_faults > self.config.max_faults
        return Fault(step, f"{what} was {value:.4g}", "stop" if excess else action, too_many=excess)


@dataclass(frozen=True)
class Fault:
    """A step that went wrong; its update has not been made.

    Attributes:
        step: which, from 1.
        what: what was wrong with it.
        action: what to do.
        too_many: whether the number of faults decided that.
    """

    step: int
    what: str
    action: Action
    too_many: bool = False
