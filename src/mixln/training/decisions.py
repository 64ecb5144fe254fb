"""What is decided once, when a run begins, since rounding depends on it; a run that goes on keeps to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mixln.errors import InputError
from mixln.training.compilation import decide_compilation, require_compiler
from mixln.training.config import ExecutionConfig, WantedPrecision
from mixln.training.distributed import Processes
from mixln.training.precision import Precision, decide_precision
from mixln.training.precision_record import settled_precision
from mixln.training.saved_checkpoint import SavedCheckpoint


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
        precision: see `agree_on_precision`.

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


def agree_on_precision(
    wanted: WantedPrecision,
    sizes: tuple[int, int, int],
    folder: Path,
    processes: Processes,
    newest: SavedCheckpoint | None = None,
    given: Precision | None = None,
) -> Precision:
    """Return the precision of what is computed in a folder, the same on every process (the main process decides).

    See `settled_precision`.

    Args:
        wanted: by the configuration of the run, or of several.
        sizes: of the matrices, (inputs, outputs, vectors), see `mixln.training.precision.decide_precision`.
        folder: of the run, which the main process has claimed, or of several that are to have the same precision.
        processes: that share it; all of them call this.
        newest: the checkpoint that it goes on from, if it does.
        given: what has been decided for this run and others together.

    Raises:
        InputError: as `settled_precision`; or the run began in another precision than `given`.
    """

    def decide() -> Precision:
        return given or decide_precision(wanted, processes.device, sizes[:2], sizes[2])

    found: Precision | InputError | None = None
    if processes.is_main:
        in_checkpoint = None if newest is None else newest.progress["settings"].get("precision")
        try:
            found = settled_precision(folder, wanted, decide, in_checkpoint)
        except InputError as error:
            found = error
    found = processes.from_main(found)
    if isinstance(found, InputError):
        raise found
    assert found is not None
    if given is not None and given.name != found.name:
        raise InputError(
            f"the run in {folder} began in {found.name}, and those that it belongs to are in {given.name}. Delete it "
            "to train it anew"
        )
    return found
