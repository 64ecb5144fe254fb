"""Metrics of a run: one JSON line a step in `metrics.jsonl`, and the same numbers to trackers."""

from __future__ import annotations

import json
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from mixln.errors import InputError
from mixln.files import write_file
from mixln.training.trackers import TRACKERS, TrackedRun, Tracker, check_trackers

METRICS_FILE = "metrics.jsonl"
TRACKERS_FILE = "trackers.json"


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
        trackers: names in `mixln.training.trackers.TRACKERS`. One that fails is warned of once.
        run_name: what trackers call the run; None: the folder's name.
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
        *,
        run_name: str | None = None,
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
                run = TrackedRun(
                    folder=folder,
                    run_id=run_id,
                    name=run_name or folder.absolute().name,
                    resume_step=resume_step,
                    logged_step=logged_steps[name],
                    config=config or {},
                )
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

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
        """Do something with a tracker, of which no failure stops the run, except one that its user can mend."""
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


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics; the last one is left out if a kill cut it short.

    Raises:
        InputError: another line is damaged.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    try:
        *complete, _unfinished = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in complete]
    except ValueError as error:
        raise InputError(
            f"{path} is damaged. Mend its last lines, or move it away: then the run goes on from its checkpoint, and "
            "its record begins there"
        ) from error


def _take_up_trackers(folder: Path, trackers: Iterable[str]) -> tuple[str, dict[str, int]]:
    """Return the run's id and, by tracker, the last step that it was given; keep both for the next start.

    To be called before `metrics.jsonl` is cut: its last line is the last step of the trackers in use until now.
    """
    path = folder / TRACKERS_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        run_id, steps, active = state["run_id"], state["logged_steps"], state["active"]
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
