"""What is decided once, when a run begins, since rounding depends on it; a run that goes on keeps to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mixln.errors import InputError
from mixln.records import decode, read_json
from mixln.storage import write_file
from mixln.training.compilation import decide_compilation, require_compiler
from mixln.training.config import ExecutionConfig, WantedPrecision
from mixln.training.distributed import Processes
from mixln.training.precision import Precision, PrecisionName, decide_precision
from mixln.training.saved_checkpoint import SavedCheckpoint
from mixln.training.task import Task

PRECISION_FILE = "precision.json"
"""In which precision a run is, or several that are compared are; decided why, on what machine."""


@dataclass(frozen=True)
class Settings:
    """What rounding depends on beside the recipe.

    Attributes:
        compiled: whether the model is compiled.
        threads: the number of PyTorch's threads.
        precision: that matrices are multiplied in.
    """

    compiled: bool
    threads: int
    precision: Precision

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it, as JSON."""
        return {"compiled": self.compiled, "threads": self.threads, "precision": self.precision.name}


def decide_settings(
    execution: ExecutionConfig, slots: int, processes: Processes, newest: SavedCheckpoint | None, precision: Precision
) -> Settings:
    """Return what is decided once: by the recipe and this machine, or, for a run that goes on, by its checkpoint.

    Args:
        execution: whether to compile.
        slots: see `decide_compilation`.
        processes: that share it.
        newest: the checkpoint that it goes on from, if it does.
        precision: see `run_precision`.

    Raises:
        InputError: the model is to be compiled, and this machine has no compiler.
    """
    fresh = Settings(decide_compilation(execution.compile, slots, processes.device), torch.get_num_threads(), precision)
    if newest is None:
        return fresh
    recorded = newest.progress["settings"]
    settings = replace(fresh, compiled=recorded["compiled"])
    if settings.compiled:
        require_compiler(processes.device, f"the run in {newest.path.parent.parent} began with a compiled model")
    # on another number of processes the sums are others anyway, and each has another share of the machine
    same_share = newest.progress["processes"] == processes.count
    return replace(settings, threads=recorded["threads"]) if same_share else settings


def run_precision(
    task: Task, folder: Path, processes: Processes, newest: SavedCheckpoint | None, given: Precision | None
) -> Precision:
    """Return the precision of a run, the same on every process.

    Args:
        task: what is trained.
        folder: of the run, which the main process has claimed.
        processes: that share it; all of them call this.
        newest: the checkpoint that it goes on from, if it does.
        given: what has been decided for this run and others together.

    Raises:
        InputError: as `agree_on_precision`; or the run began in another precision than `given`.
    """
    sizes = *task.widths(), task.config.rows_of_a_forward(processes.data_count) * task.positions
    found = agree_on_precision(task.config.precision, sizes, folder, processes, newest, given)
    if given is not None and given.name != found.name:
        raise InputError(
            f"the run in {folder} began in {found.name}, but the runs it is compared with are in {given.name}. Delete "
            "it to train it anew"
        )
    return found


def agree_on_precision(
    wanted: WantedPrecision,
    sizes: tuple[int, int, int],
    folder: Path,
    processes: Processes,
    newest: SavedCheckpoint | None = None,
    given: Precision | None = None,
) -> Precision:
    """Return the precision of what is computed in a folder, the same on every process (the main process decides).

    Args:
        wanted: by the configuration of the run, or of several.
        sizes: of the matrices, (inputs, outputs, vectors), see `mixln.training.precision.decide_precision`.
        folder: of a run, or of several that are to have the same precision.
        processes: that share it; all of them call this.
        newest: the checkpoint that it goes on from, if it does.
        given: what is to be taken if nothing is known; None: `decide_precision` decides.

    Raises:
        InputError: as `settled_precision`.
    """

    def decide() -> Precision:
        return given or decide_precision(wanted, processes.device, sizes[:2], sizes[2])

    in_checkpoint = None if newest is None else newest.progress["settings"]["precision"]
    return processes.on_main(lambda: settled_precision(folder, wanted, decide, in_checkpoint))


def settled_precision(
    folder: Path, wanted: str, decide: Callable[[], Precision], in_checkpoint: PrecisionName | None = None
) -> Precision:
    """Return the precision of what is computed in a folder: decided the first time, and the same from then on.

    In this order: what the recipe says, unless that is auto; the checkpoint that the run goes on from;
    `precision.json`; else `decide`. What was decided for auto stays on record if some of several runs then have a
    recipe that says more.

    Args:
        folder: of a run, or of several that are to have the same precision.
        wanted: of the recipe: auto, float32 or bfloat16.
        decide: called if nothing is known.
        in_checkpoint: the name in the checkpoint that the run goes on from, if it does.

    Raises:
        InputError: the record is damaged, or cannot be written.
    """
    path = folder / PRECISION_FILE
    known = read_precision(path) if path.exists() else None
    if wanted != "auto":
        found = decide()
        to_record = known or found
    else:
        found = known if known is not None and known.wanted == "auto" else None
        if in_checkpoint is not None and (found is None or found.name != in_checkpoint):
            found = Precision(in_checkpoint, "as the run's checkpoint says", "auto")
        found = to_record = found or decide()
    if to_record != known:
        write_file(path, json.dumps(asdict(to_record), indent=2) + "\n")
    return found


def read_precision(path: Path) -> Precision:
    """Return what a record says.

    Raises:
        InputError: it is damaged.
    """
    try:
        return decode(Precision, read_json(path), "it")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}). It says in which precision the run began: write that into it again, or "
            "delete it, and a run with a checkpoint goes on as the checkpoint says"
        ) from error
