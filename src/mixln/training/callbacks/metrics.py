"""Metrics of a run: one JSON line a step in `metrics.jsonl`, and the same numbers to trackers."""

from __future__ import annotations

import json
import math
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixln.errors import InputError
from mixln.records import parse_json, read_json
from mixln.storage import write_file
from mixln.training.callback import Callback, Run, StepRecord
from mixln.training.callbacks.trackers import TRACKERS, TrackedRun, Tracker, check_trackers

METRICS_FILE = "metrics.jsonl"
TRACKERS_FILE = "trackers.json"


ReportStep = Callable[[int, float, float], None]
"""Called after every step, by the main process, with (step, training loss, weight per second: tokens per second)."""


class TrackerWarning(UserWarning):
    """A tracker failed; the run goes on, and `metrics.jsonl` has what the tracker lacks."""


class MetricsLog:
    """Writes the metrics of a run, and takes up those of an interrupted one.

    `metrics.jsonl` is the record: a line is on disk before a tracker gets its values, so a kill at any moment leaves
    whole lines, of at least the steps that the trackers were given. `trackers.json` holds the run's id and, by tracker,
    how far it had got when the run was last started.

    Args:
        folder: of the run.
        resume_step: the step that the run goes on from; lines of later steps are dropped, since they will be
            written again.
        trackers: names in `mixln.training.callbacks.trackers.TRACKERS`. One that fails is warned of once.
        config: the recipe as nested dictionaries, for trackers to show.

    Raises:
        InputError: the files cannot be read or written, there is no such tracker, its package is not installed, or it
            needs a login.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int = 0,
        trackers: Iterable[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        trackers = tuple(dict.fromkeys(trackers))
        check_trackers(trackers)
        self._folder = folder
        self._path = folder / METRICS_FILE
        self._trackers: dict[str, Tracker] = {}
        self._failed: set[str] = set()
        run_id, logged_steps = _take_up_trackers(folder, trackers)
        self._open(resume_step)
        try:
            for name in trackers:
                run = TrackedRun(folder, run_id, resume_step, logged_steps[name], config or {})
                self._guard(name, lambda name=name, run=run: self._trackers.update({name: TRACKERS[name](run)}))
        except BaseException:
            self.close()
            raise

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step (numbers that are not finite are written as null).

        Raises:
            InputError: the disk is full, or the file cannot be written; the lines before stay whole.
        """
        finite = {name: value if abs(value) < float("inf") else None for name, value in values.items()}
        self._append(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        for name, tracker in self._trackers.items():
            self._guard(name, lambda tracker=tracker: tracker.log(values, step))

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, from which the run goes on: for a roll-back to a checkpoint.

        Raises:
            InputError: the file cannot be read or written.
        """
        self._file.close()
        self._open(step)
        for name, tracker in self._trackers.items():
            self._guard(name, lambda tracker=tracker: tracker.rewind(step))

    def flush(self) -> None:
        """Have trackers put on disk what they were given (a line of metrics.jsonl is there once it is written)."""
        for name, tracker in self._trackers.items():
            self._guard(name, tracker.flush)

    def close(self) -> None:
        """Close the file and all trackers."""
        self._file.close()
        for name, tracker in self._trackers.items():
            self._guard(name, tracker.close)

    def _open(self, resume_step: int) -> None:
        kept = [line for line in read_metrics(self._folder) if line["step"] <= resume_step] if resume_step else []
        write_file(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        # unbuffered: what fails, fails in the step that it belongs to, and nothing is left over to fail on closing
        self._file = self._path.open("ab", buffering=0)

    def _append(self, line: str) -> None:
        data, end = line.encode(), self._file.seek(0, 2)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            # a full disk may have taken part of the line; to make a file shorter needs no space
            self._file.truncate(end)
            raise InputError(
                f"cannot write {self._path}: {error.strerror or error}. Make room, and run the same command again: it "
                "goes on from the last checkpoint"
            ) from error

    def _guard(self, name: str, action: Callable[[], object]) -> None:
        """Do something with a tracker, of which no failure stops the run, except one that its user can fix."""
        try:
            action()
        except InputError:
            raise
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                warnings.warn(
                    f"the tracker {name} failed ({type(error).__name__}: {error}). Training goes on; all metrics are "
                    f"in {self._path}",
                    TrackerWarning,
                    stacklevel=3,
                )


class Metrics(Callback):
    """Writes the numbers of every step to a `MetricsLog`, and tells whoever started the run how far it is.

    Args:
        trackers: where metrics go beside `metrics.jsonl`.
        unit: what a batch's weight counts.
        report_step: see `ReportStep`.
    """

    def __init__(self, trackers: Iterable[str], unit: str, report_step: ReportStep | None) -> None:
        self._trackers, self._unit, self._report_step = trackers, unit, report_step
        self._log: MetricsLog | None = None
        self._weight, self._seconds = 0, 0.0

    def start(self, run: Run) -> None:
        """Open the log; only the main process writes, and reports."""
        if not run.processes.is_main:
            self._report_step = None
        else:
            self._log = MetricsLog(run.folder, run.step, self._trackers, config=run.description())

    def judge(self, record: StepRecord) -> None:
        """Write the metrics of a step.

        Raises:
            InputError: the disk is full.
        """
        self._weight += record.weight
        self._seconds += float(record.values["seconds"])
        loss, rate = float(record.loss), self._weight / self._seconds
        if self._log is not None:
            numbers = {"loss": loss, "gradient_norm": float(record.gradient_norm), f"{self._unit}_per_second": rate}
            values = {name: float(one) if isinstance(one, Tensor) else one for name, one in record.values.items()}
            self._log.write(record.step, {**numbers, **values})
        if self._report_step is not None and math.isfinite(loss):
            self._report_step(record.step, loss, rate)

    def rewind(self, run: Run) -> None:
        """Drop what was written of later steps."""
        if self._log is not None:
            self._log.rewind(run.step)

    def flush(self) -> None:
        """Put on disk what has been written."""
        if self._log is not None:
            self._log.flush()

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics; the last one is left out if a kill cut it short.

    Raises:
        InputError: another line is damaged.
    """
    path = Path(folder) / METRICS_FILE
    if not path.exists():
        return []
    try:
        *complete, _unfinished = path.read_text(encoding="utf-8").split("\n")
        return [_checked(parse_json(line, METRICS_FILE)) for line in complete]
    except ValueError as error:
        raise InputError(
            f"{path} is damaged. Fix its last lines, or move it away: then the run goes on from its checkpoint, and "
            "its record begins there"
        ) from error


def _checked(line: object) -> dict[str, float]:
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        raise ValueError("it is no line of metrics")
    if not all(value is None or isinstance(value, int | float) for value in line.values()):
        raise ValueError("it holds more than numbers")
    return line


def _take_up_trackers(folder: Path, trackers: Iterable[str]) -> tuple[str, dict[str, int]]:
    """Return the run's id and, by tracker, the last step that it was given; keep both for the next start.

    To be called before `metrics.jsonl` is cut: its last line is the last step of the trackers in use until now.
    """
    path = folder / TRACKERS_FILE
    try:
        state = read_json(path)
        run_id, steps, active = str(state["run_id"]), dict(state["logged_steps"]), list(state["active"])
        if not all(type(step) is int for step in steps.values()):
            raise ValueError("a step is no number")
    except FileNotFoundError:
        run_id, steps, active = secrets.token_hex(4), {}, []
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged. Delete it, and trackers take what follows for a new run") from error
    last = _last_step(folder) if active else 0
    steps = {name: max(step, last) if name in active else step for name, step in steps.items()}
    steps.update({name: 0 for name in trackers if name not in steps})
    state = {"run_id": run_id, "active": list(trackers), "logged_steps": steps}
    write_file(path, json.dumps(state, indent=2) + "\n")
    return run_id, steps


def _last_step(folder: Path) -> int:
    try:
        return max((int(line["step"]) for line in read_metrics(folder)), default=0)
    except InputError:
        # a run that starts anew throws the file away; one that goes on reads it again, and says what is wrong
        return 0
