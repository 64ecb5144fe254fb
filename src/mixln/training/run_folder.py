"""The folder of a run: whose it is, and the finished model in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixln.errors import InputError
from mixln.plugins import loaded_plugins
from mixln.records import read_json
from mixln.storage import disk_errors, held_lock, put_on_disk, whole_folder, write_file
from mixln.training.callback import Callback
from mixln.training.callbacks.metrics import METRICS_FILE
from mixln.training.saved_checkpoint import CHECKPOINTS_FOLDER
from mixln.training.task import Task

RECIPE_FILE = "recipe.json"
MODEL_FOLDER = "model"

_MAY_CHANGE = ("execution", "faults", "plugins")
"""What may change when a run is resumed: fields of a configuration, and the plugins that are loaded."""


@contextmanager
def claimed_folder(folder: Path, task: Task, callbacks: Sequence[Callback] = ()) -> Iterator[None]:
    """Hold a run's folder for this process alone, created if need be, after making sure that its run is this one.

    Args:
        folder: of the run.
        task: what is trained.
        callbacks: beside those of the task.

    Raises:
        InputError: the run in it is another one, another process is at it, or it cannot be written.
    """
    path = folder / RECIPE_FILE
    wanted: dict[str, Any] = {**task.config.to_dict(), **task.identity()}
    if identities := {callback.name: callback.identity() for callback in (*task.callbacks(), *callbacks)}:
        wanted["callbacks"] = identities
    if plugins := loaded_plugins():
        wanted["plugins"] = [vars(plugin) for plugin in plugins]
    wanted = json.loads(json.dumps(wanted))
    if not path.exists():
        if foreign := [name for name in (MODEL_FOLDER, CHECKPOINTS_FOLDER, METRICS_FILE) if (folder / name).exists()]:
            raise InputError(
                f"{folder} holds {foreign[0]}, but no {RECIPE_FILE} that says of which run. Choose another"
            )
        write_file(path, json.dumps(wanted, indent=2) + "\n")
    try:
        found, wanted = (
            {name: value for name, value in one.items() if name not in _MAY_CHANGE} for one in (read_json(path), wanted)
        )
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a valid recipe. Delete {folder} to start this run over") from error
    if changes := list(differences(found, wanted)):
        raise InputError(f"{folder} holds a run of another recipe ({'; '.join(changes)}). Choose another folder")
    busy = f"another process is training in {folder}. Wait for it, or choose another folder"
    with held_lock(folder / ".lock", busy):
        for leftover in folder.glob(f".{MODEL_FOLDER}.*.tmp"):  # of a kill; whoever wrote it does not hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def differences(before: object, after: object, name: str = "") -> Iterator[str]:
    """Yield a sentence for every value that differs between two nested dictionaries."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), f"{name}.{key}" if name else key)
    elif before != after:
        yield f"{name} was {before}, is {after}"


def fill_folder(folder: Path, fill: Callable[[Path], object], remedy: str) -> None:
    """Write a folder, whole or not at all.

    Args:
        folder: to write.
        fill: writes all that belongs into it, into the folder that it is given.
        remedy: what to do about a disk that does not take it, a sentence for the user.

    Raises:
        InputError: the folder cannot be written.
    """
    with disk_errors(f"the model could not be saved in {folder}", remedy), whole_folder(folder) as temporary:
        fill(temporary)
        put_on_disk(temporary)  # the checkpoints it was made from may be removed next
