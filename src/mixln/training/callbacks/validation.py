"""Validation while a run goes on."""

from __future__ import annotations

import math

from mixln.training.callback import Callback, Run, StepRecord, Verdict
from mixln.training.callbacks.faults import ADVICE
from mixln.training.objective import Evaluation


class Validation(Callback):
    """Validates every so many steps and after the last; a number that is not finite ends the run.

    Args:
        every: steps between validations.
        last_step: of the run.
        lenient: go on with a warning, unless it is the last step: steps that go wrong are skipped, which leaves the
            weights finite, so that the run may recover.
    """

    def __init__(self, every: int, last_step: int, *, lenient: bool) -> None:
        self._every, self._last_step, self._lenient = every, last_step, lenient
        self._latest: tuple[int, Evaluation] | None = None

    def of(self, step: int) -> Evaluation | None:
        """Return the validation after a step, if it is the latest."""
        return self._latest[1] if self._latest is not None and self._latest[0] == step else None

    def end_step(self, run: Run, record: StepRecord) -> None:
        """Validate, if it is due."""
        if record.step % self._every == 0 or record.step == self._last_step:
            evaluation = run.validate()
            self._latest = record.step, evaluation
            record.values |= evaluation.numbers
            record.urgent = True

    def judge(self, record: StepRecord) -> Verdict | None:
        """See whether the numbers are finite."""
        if self._latest is None or self._latest[0] != record.step:
            return None
        for name, number in self._latest[1].numbers.items():
            if not math.isfinite(number):
                reason = f"the {name.replace('_', ' ')} was {number} in step {record.step}"
                if self._lenient and record.step != self._last_step:
                    return Verdict("go_on", record.step, reason)
                return Verdict("stop", record.step, reason, saved="nothing", advice=ADVICE)
        return None

    def rewind(self, run: Run) -> None:
        """Forget a validation of a step that is made again."""
        del run
        self._latest = None
