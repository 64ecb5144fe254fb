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

    def end_step(self, run: Run, record: StepRecord) -> None:
        """Validate, if it is due."""
        if record.step % self._every == 0 or record.step == self._last_step:
            record.values |= self.of(run).numbers
            record.urgent = True

    def of(self, run: Run) -> Evaluation:
        """Return the validation of a run as it is now, which is made once."""
        if self._latest is None or self._latest[0] != run.step:
            self._latest = run.step, run.validate()
        return self._latest[1]

    def judge(self, record: StepRecord) -> Verdict | None:
        """See whether the numbers are finite."""
        return self.verdict(record.step)

    def verdict(self, step: int) -> Verdict | None:
        """See whether the numbers after a step are finite, if they are the latest."""
        if self._latest is None or self._latest[0] != step:
            return None
        for name, number in self._latest[1].numbers.items():
            if not math.isfinite(number):
                reason = f"the {name.replace('_', ' ')} was {number} in step {step}"
                if self._lenient and step != self._last_step:
                    return Verdict("go_on", step, reason)
                return Verdict("stop", step, reason, saved="nothing", advice=ADVICE)
        return None

    def rewind(self, run: Run) -> None:
        """Forget a validation of a step that is made again."""
        del run
        self._latest = None
