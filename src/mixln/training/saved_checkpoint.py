"""The checkpoints that a run's folder holds: which there are, which are whole, and what was recorded with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar

from mixln.checked import NonNegativeInt, Range
from mixln.errors import InputError
from mixln.manifest import read_manifest
from mixln.records import check_record, read_json

CHECKPOINTS_FOLDER = "checkpoints"
PROGRESS_FILE = "progress.json"

Found = TypeVar("Found")


class SettingsState(TypedDict):
    """What was decided when the run began."""

    compiled: bool
    threads: Annotated[int, Range(low=1, high=4096)]
    precision: Literal["float32", "bfloat16"]


class Progress(TypedDict):
    """`progress.json` of a checkpoint: what a run needs to go on that is no tensor."""

    step: NonNegativeInt
    weight: NonNegativeInt
    callbacks: dict[str, Any]
    settings: dict[str, Any]
    processes: NonNegativeInt


class OtherVersionError(InputError):
    """A checkpoint is whole, and another version of this library has written it."""


class DamagedCheckpointWarning(UserWarning):
    """The newest checkpoint cannot be used; the run goes on from the one before."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint: its folder, and the progress that was saved with it."""

    path: Path
    progress: dict[str, Any]


def newest_whole(run_folder: Path, read: Callable[[Path], Found], last_step: int | None = None) -> Found | None:
    """Return the newest checkpoint of a run that is whole, warning of those that are not; None if there is none at all.

    Args:
        run_folder: of the run.
        read: gives what is wanted of a checkpoint whose checksums are right, such as `read_progress`.
        last_step: only those of this step or earlier; None: all.

    Raises:
        OtherVersionError: as `read`.
        InputError: there are checkpoints, but none is whole.
    """
    paths = [path for path in list_checkpoints(run_folder) if last_step is None or checkpoint_step(path) <= last_step]
    problem = ""
    for path in reversed(paths):
        try:
            if read_manifest(path) is None:
                raise ValueError("it has just been removed")
            return read(path)
        except OtherVersionError:
            raise
        except (ValueError, OSError) as error:
            problem = f"the checkpoint {path} is damaged ({error})"
            warnings.warn(f"{problem}; the checkpoint before it is tried", DamagedCheckpointWarning, stacklevel=2)
    if paths:
        raise InputError(f"{problem}, and there is no whole one. Delete {run_folder} to start this run over")
    return None


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    found = (run_folder / CHECKPOINTS_FOLDER).glob("step_*")
    # what a user put there is none of ours
    return sorted((path for path in found if path.name.removeprefix("step_").isdecimal()), key=checkpoint_step)


def describe_kept(run_folder: Path) -> str:
    """Return in words what is kept of a run that has ended before its time."""
    if (run_folder / "model").exists():
        return f"the trained model is kept in {run_folder}"
    if not (found := list_checkpoints(run_folder)):
        return "nothing is kept of the run, which had no checkpoint yet"
    return f"the checkpoint of step {checkpoint_step(found[-1])} is kept. Run the same command again to go on"


def checkpoint_step(path: Path) -> int:
    """Return the step of a checkpoint, from its name."""
    return int(path.name.removeprefix("step_"))


def read_progress(checkpoint: Path) -> SavedCheckpoint:
    """Return a checkpoint with its progress, whose checksum says that it was saved so, but not by whom.

    Raises:
        OtherVersionError: another version of this library has written it.
        InputError: it is not what a run writes.
        OSError: it cannot be read.
    """
    found = read_json(checkpoint / PROGRESS_FILE)
    try:
        progress = check_record(Progress, found, PROGRESS_FILE)
        check_record(SettingsState, progress["settings"], f"settings in {PROGRESS_FILE}")
    except InputError as error:
        if isinstance(found, dict) and _has_other_fields(found):
            raise OtherVersionError(
                f"the checkpoint {checkpoint} was written by another version of mixln ({error}). It is intact: go on "
                "with that version, or start anew in another folder"
            ) from error
        raise
    for name, state in progress["callbacks"].items():
        if not isinstance(state, dict):
            raise InputError(f"{name} in {PROGRESS_FILE} is no JSON object")
    if progress["step"] != checkpoint_step(checkpoint):
        raise InputError(f"{PROGRESS_FILE} is of step {progress['step']}")
    return SavedCheckpoint(checkpoint, progress)


def _has_other_fields(progress: dict[str, Any]) -> bool:
    settings = progress.get("settings", {})
    return progress.keys() != Progress.__annotations__.keys() or (
        isinstance(settings, dict) and settings.keys() != SettingsState.__annotations__.keys()
    )
