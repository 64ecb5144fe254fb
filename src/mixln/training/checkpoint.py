"""Checkpoints from which an interrupted run goes on as if nothing had happened."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixln.errors import InputError

CHECKPOINT_FILE = "checkpoint.pt"


def save_checkpoint(folder: Path, step: int, tokens: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights, optimiser, random state, step and tokens so far.

    A kill at any moment leaves the last complete checkpoint. Schedule and data position are functions of the step.

    Raises:
        InputError: the folder cannot be written, or the disk is full; the last complete checkpoint is intact.
    """
    path = folder / CHECKPOINT_FILE
    temporary = path.with_suffix(".tmp")
    state = {
        "step": step,
        "tokens": tokens,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random_state": torch.get_rng_state(),
    }
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as RuntimeError from its zip writer
        temporary.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else os.strerror(errno.ENOSPC)
        raise InputError(
            f"the checkpoint {path} could not be written ({reason}). The one before it is intact: make room, and run "
            "the same command again to go on from it"
        ) from error


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Restore what `save_checkpoint` wrote and return its (step, tokens); (0, 0) if there is none.

    Raises:
        InputError: the checkpoint cannot be read, or belongs to another model.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return 0, 0
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random_state"])
        return int(state["step"]), int(state["tokens"])
    except (RuntimeError, KeyError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise InputError(
            f"the checkpoint {path} is damaged or of another model. Delete it to start this run over"
        ) from error
