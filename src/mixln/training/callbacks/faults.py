"""Steps that go wrong: seeing them, and deciding what to do."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from typing import Annotated, Any, TypedDict

from torch import Tensor

from mixln.checked import NonNegativeInt, Range
from mixln.errors import InputError
from mixln.records import check_record
from mixln.training.callback import Callback, Run, StepRecord, Verdict
from mixln.training.config import FaultConfig
from mixln.training.saved_checkpoint import PROGRESS_FILE

FAULTS_FILE = "faults.jsonl"

ADVICE = "Lower the learning rate or lengthen the warmup, in another folder; Post-LN layers need a long one"

_ROWS_NAMED = 4


class WatchState(TypedDict):
    """What judges steps, as `FaultWatch.state` gives it."""

    recent_norms: list[Annotated[float, Range(low=0, below=math.inf)]]
    skipped_steps: list[NonNegativeInt]
    num_faults: NonNegativeInt


class FaultWatch(Callback):
    """Looks at each step's loss and gradient norm.

    The device itself refuses the update of a step that goes wrong, so that the weights are those of the last good step
    whatever is decided when the numbers are read.

    Args:
        config: the policy.

    Attributes:
        recent_norms: gradient norms of the last good steps, as many as the window.
        skipped_steps: steps not to be made, since they went wrong before a roll-back.
        num_faults: faults so far.
    """

    def __init__(self, config: FaultConfig) -> None:
        self._config = config
        self._limits: dict[int, float] = {}
        self.recent_norms: deque[float] = deque(maxlen=config.gradient_spike_window)
        self.skipped_steps: set[int] = set()
        self.num_faults = 0

    @property
    def largest_norm(self) -> float:
        """The gradient norm above which a step is a spike: factor * median of the recent ones; at first infinite.

        Known before the step, so that the device can refuse a bad update by itself.
        """
        config = self._config
        if config.on_gradient_spike == "ignore" or len(self.recent_norms) < config.gradient_spike_window:
            return math.inf
        return config.gradient_spike_factor * statistics.median(self.recent_norms)

    def begin(self, run: Run) -> None:
        """Know the run, to explain what goes wrong in it."""
        self._run = run

    def skips(self, step: int) -> bool:
        """Leave out what went wrong before a roll-back."""
        return step in self.skipped_steps

    def accepts(self, step: int, gradient_norm: Tensor) -> Tensor | None:
        """Refuse spikes."""
        limit = self._limits[step] = self.largest_norm
        return None if limit == math.inf else gradient_norm <= limit

    def judge(self, record: StepRecord) -> Verdict | None:
        """See what is wrong with a step, against the limit that there was when it was made."""
        loss, norm = float(record.loss), float(record.gradient_norm)
        limit = self._limits.pop(record.step, math.inf)
        if not math.isfinite(loss):
            return self._fault(record.step, "the training loss", loss, self._config.on_non_finite)
        if not math.isfinite(norm):
            return self._fault(record.step, "the gradient norm", norm, self._config.on_non_finite)
        if norm > limit:
            return self._fault(record.step, "the gradient norm", norm, self._config.on_gradient_spike)
        self.recent_norms.append(norm)
        return None

    def explain(self, verdict: Verdict) -> str:
        """Return a sentence with step, rows and the layer where it began, and note it in `faults.jsonl`.

        The step is computed again to find the layer, its forward without compilation.

        Raises:
            InputError: the disk is full.
        """
        run, step = self._run, verdict.step
        rows = [int(row) for row in run.rows(step)]
        where = run.find_fault(step)
        if run.processes.is_main:
            action = "roll_back" if verdict.action == "go_back" else verdict.action
            line = {"step": step, "what": verdict.reason, "action": action, "where": where, "rows": rows}
            self._note(json.dumps(line) + "\n")
        named = ", ".join(map(str, rows[:_ROWS_NAMED])) + (", ..." if len(rows) > _ROWS_NAMED else "")
        return f"{verdict.reason} in step {step}{f' (training rows {named})' if rows else ''}, first {where}"

    def learn(self, verdict: Verdict) -> None:
        """Leave the step out after going back; of a stop, the step counts as not made, and its fault as not seen."""
        if verdict.action == "go_back":
            self.skipped_steps.add(verdict.step)
        elif verdict.action == "stop":
            self.num_faults -= 1

    def state(self) -> dict[str, Any]:
        """Return what a resumed run has to know to judge as this one does."""
        return {
            "recent_norms": list(self.recent_norms),
            "skipped_steps": sorted(self.skipped_steps),
            "num_faults": self.num_faults,
        }

    def restore(self, state: dict[str, Any], *, rolled_back: bool = False) -> None:
        """Take up `state`; after a roll-back, faults and the steps to skip stay as they are now.

        Raises:
            InputError: it is none that `state` gives.
        """
        beginning: dict[str, Any] = {"recent_norms": [], "skipped_steps": [], "num_faults": 0}
        state = check_record(WatchState, state or beginning, f"the state of {self.name} in {PROGRESS_FILE}")
        self._limits.clear()
        self.recent_norms.clear()
        self.recent_norms.extend(state["recent_norms"])
        if not rolled_back:
            self.skipped_steps, self.num_faults = set(state["skipped_steps"]), int(state["num_faults"])

    def _fault(self, step: int, what: str, value: float, policy: str) -> Verdict:
        self.num_faults += 1
        reason, most = f"{what} was {value:.4g}", self._config.max_faults
        excess = self.num_faults > most
        if not excess and policy == "skip":
            return Verdict("skip", step, reason)
        if not excess and policy == "roll_back":
            return Verdict("go_back", step, reason, before=step - 1)
        advice = f"{ADVICE}. Or let another policy in the recipe's faults go on without this step" + (
            f" (there were more than faults.max_faults, {most}, already)" * excess
        )
        return Verdict("stop", step, reason, saved="before", advice=advice)

    def _note(self, line: str) -> None:
        path = self._run.folder / FAULTS_FILE
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror or error}. Make room, and run the same command again: it goes "
                "on from the last checkpoint"
            ) from error
