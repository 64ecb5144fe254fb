"""The checkpoints that a run's folder holds: which there are, which are whole, and what was recorded with them."""

# no `from __future__ import annotations`: annotations that are strings are not checked

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from mixln.checked import NonNegativeInt, Range
from mixln.errors import InputError
from mixln.manifest import read_manifest
from mixln.records import check_record, read_json

CHECKPOINTS_FOLDER = "checkpoints"
PROGRESS_FILE = "progress.json"


class WatchState(TypedDict):
    """What judges steps, as `FaultWatch.state` gives it."""

    recent_norms: list[Annotated[float, Range(low=0, below=math.inf)]]
    skipped_steps: list[NonNegativeInt]
    num_faults: NonNegativeInt


def check_watch_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of what judges steps, {} being that of a run that begins.

    Raises:
        InputError: it is none.
    """
    beginning: dict[str, Any] = {"recent_norms": [], "skipped_steps": [], "num_faults": 0}
    return check_record(WatchState, state or beginning, f"the state of FaultWatch in {PROGRESS_FILE}")


class SettingsState(TypedDict):
    """What was decided when the run began."""

    compiled: bool
    threads: Annotated[int, Range(low=1, high=4096)]
    precision: NotRequired[Literal["float32", "bfloat16"]]


class Progress(TypedDict):
    """`progress.json` of a checkpoint: what a run needs to go on that is no tensor."""

    step: NonNegativeInt
    weight: NonNegativeInt
    callbacks: dict[str, Any]
    settings: dict[str, Any]
    processes: NonNegativeInt


class DamagedCheckpointWarning(UserWarning):
    """The newest checkpoint cannot be used; the run goes on from the one before."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint: its folder, and the progress that was saved with it."""

    path: Path
    progress: dict[str, Any]


def newest_whole(run_folder: Path, last_step: int | None = None) -> SavedCheckpoint | None:
    """Return the newest checkpoint of a run that is whole, warning of those that are not; None if there is none at all.

    Args:
        run_folder: of the run.
        last_step: only those of this step or earlier; None: all.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    paths = [path for path in list_checkpoints(run_folder) if last_step is None or checkpoint_step(path) <= last_step]
    problem = ""
    for path in reversed(paths):
        try:
            if read_manifest(path) is None:
                raise ValueError("it has just been removed")
            return SavedCheckpoint(path, _read_progress(path))
        except (ValueError, OSError) as error:
            problem = f"the checkpoint {path} is damaged ({error})"
            warnings.warn(f"{problem}; looking for the one before", DamagedCheckpointWarning, stacklevel=2)
    if paths:
        raise InputError(f"{problem}, and there is no whole one. Delete {run_folder} to start this run over")
    return None


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    found = (run_folder / CHECKPOINTS_FOLDER).glob("step_*")
    # what a user put there is none of ours
    return sorted((path for path in found if path.name.removeprefix("step_").isdecimal()), key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """Return the step of a checkpoint, from its name."""
    return int(path.name.removeprefix("step_"))


def _read_progress(checkpoint: Path) -> dict[str, Any]:
    """Return the progress of a checkpoint, whose checksum says that it was saved so, but not by whom.

    Raises:
        InputError: it is not what a run writes.
        OSError: it cannot be read.
    """
    found = read_json(checkpoint / PROGRESS_FILE)
    if isinstance(found, dict) and "watch" in found:
        raise InputError(f"{PROGRESS_FILE} was written by an older version of mixln, which alone can go on from it")
    progress = check_record(Progress, found, PROGRESS_FILE)
    for name, state in progress["callbacks"].items():
        if not isinstance(state, dict):
            raise InputError(f"{name} in {PROGRESS_FILE} is no JSON object")
    check_watch_state(progress["callbacks"].get("FaultWatch", {}))
    check_record(SettingsState, progress["settings"], f"settings in {PROGRESS_FILE}")
    if progress["step"] != checkpoint_step(checkpoint):
        raise InputError(f"{PROGRESS_FILE} is of step {progress['step']}")
    return progress
