"""Checkpoints from which an interrupted run goes on as if nothing had happened.

A run's folder has `checkpoints/step_00000100/`: what `torch.distributed.checkpoint` writes (a part by each process),
`progress.json` (what is no tensor), `huggingface/` (config and tokenizer, for exporting), and `manifest.json` with a
checksum of every file. The folder gets its name when all of it is on disk; until then it is `.step_00000100.tmp`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mixln.data.cache import read_manifest, write_manifest
from mixln.errors import InputError
from mixln.files import put_on_disk, sync_folder
from mixln.training.config import ExecutionConfig
from mixln.training.distributed import Processes

CHECKPOINTS_FOLDER = "checkpoints"
PROGRESS_FILE = "progress.json"
HUGGINGFACE_FOLDER = "huggingface"

# a run of one process is no mistake; the remark comes from a background thread, where no context can hold it back
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""How tokenizers, whose error is a bare `Exception`, and safetensors tell of an error of the system."""

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
"""Weights that are not trained come from where the run got them."""


class DamagedCheckpointWarning(UserWarning):
    """The newest checkpoint cannot be used; the run goes on from the one before."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint: its folder, and the progress that was saved with it."""

    path: Path
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Weights, optimiser state, random state and what `progress` says; the schedule and the position in the data are
    functions of the step. Written while training goes on, unless the recipe says otherwise; restored on any number of
    processes, sharded in any way.

    Args:
        folder: of the run.
        processes: of the run; all of them call every method.
        execution: how many to keep, and whether to write in the background.
        tokenizer: saved with every checkpoint, so that it can be exported alone.
    """

    def __init__(
        self, folder: Path, processes: Processes, execution: ExecutionConfig, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self._folder = folder / CHECKPOINTS_FOLDER
        self._processes = processes
        self._execution = execution
        self._tokenizer = tokenizer
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mixln-checkpoint")
        self._pending: Future[None] | None = None
        # of its own, since the background talks while training does
        group = None if processes.mesh is None else dist.new_group(backend="gloo")
        self._group = group if isinstance(group, dist.ProcessGroup) else None
        if processes.is_main:
            for leftover in self._folder.glob(".step_*"):  # of a kill: the run's lock is ours, so nobody works there
                if leftover.is_dir():
                    shutil.rmtree(leftover)

    def save(
        self,
        step: int,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        progress: dict[str, Any],
        *,
        needed: Iterable[int] = (),
    ) -> None:
        """Begin to write a checkpoint of a step; the one before is complete by then.

        Args:
            step: the number of steps made.
            model: the model, without DDP's wrapper.
            optimizer: over its parameters.
            progress: whatever else resuming needs, as JSON.
            needed: for each of these steps, the newest checkpoint of it or earlier is kept, however many there are.

        Raises:
            InputError: this one or the one before cannot be written; the last complete one is intact.
        """
        self.wait()
        final = self._folder / _name(step)
        temporary = self._folder / f".{final.name}.tmp"
        alone = self._processes.mesh is None
        with _disk_errors(final, temporary):
            if self._processes.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                (temporary / HUGGINGFACE_FOLDER).mkdir(parents=True)
                model.config.save_pretrained(temporary / HUGGINGFACE_FOLDER)
                self._tokenizer.save_pretrained(temporary / HUGGINGFACE_FOLDER)
            self._processes.wait_for_all()
            state = _tensors(model, optimizer, self._processes.rank)
            written: Future[Any] | None = None
            if self._execution.asynchronous_checkpoints:
                saving = async_save(state, checkpoint_id=temporary, process_group=self._group, no_dist=alone)
                assert isinstance(saving, Future)
                written = saving
            else:
                save(state, checkpoint_id=temporary, process_group=self._group, no_dist=alone)
        if written is None:
            self._finish(None, temporary, final, progress, needed)
        else:
            self._pending = self._executor.submit(self._finish, written, temporary, final, progress, needed)

    def check(self) -> None:
        """Raise what went wrong in the background, if anything has; do not wait.

        Raises:
            InputError: as `save`.
        """
        if self._pending is not None and self._pending.done() and (error := self._pending.exception()) is not None:
            raise error

    def wait(self) -> None:
        """Return when the last checkpoint is complete, on every process.

        Raises:
            InputError: as `save`.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
            self._processes.wait_for_all()

    def close(self) -> None:
        """Let the background finish; what goes wrong there now is not told."""
        self._executor.shutdown(wait=True)

    def go_back(self, step: int) -> SavedCheckpoint | None:
        """Return the newest whole checkpoint of a step or earlier, having removed what came after it; see `newest`.

        If there is none, nothing is removed.
        """
        found = self.newest(step)
        if self._processes.is_main and found is not None:
            paths = list_checkpoints(self._folder.parent)
            later = [path for path in paths if checkpoint_step(path) > checkpoint_step(found.path)]
            self._remove(later[::-1], even_permanent=True)
        self._processes.wait_for_all()
        return found

    def newest(self, last_step: int | None = None) -> SavedCheckpoint | None:
        """Return the newest checkpoint that is whole, the same on every process, or None if there is none at all.

        Args:
            last_step: only of this step or earlier; None: of all.

        Raises:
            InputError: there are checkpoints, but none is whole.
        """
        found: SavedCheckpoint | InputError | None = None
        if self._processes.is_main:
            try:
                found = newest_whole(self._folder.parent, last_step)
            except InputError as error:
                found = error
        found = self._processes.from_main(found)
        if isinstance(found, InputError):
            raise found
        return found

    def restore(self, checkpoint: SavedCheckpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Give weights, optimiser and random state the values that they had.

        Raises:
            InputError: the checkpoint is of another model.
        """
        path = checkpoint.path
        state = _tensors(model, optimizer, self._processes.rank)
        known = FileSystemReader(path).read_metadata().state_dict_metadata
        # a process that was not there when the checkpoint was written has no random state in it
        wanted = {name: tensor for name, tensor in state.items() if name in known or not name.startswith("random_")}
        try:
            load(wanted, checkpoint_id=path, process_group=self._group, no_dist=self._processes.mesh is None)
        except (RuntimeError, ValueError, KeyError, CheckpointException) as error:
            raise InputError(f"the checkpoint {path} is of another model ({_first_line(error)})") from error
        _put_back(wanted, model, optimizer, self._processes.rank)

    def remove_all_but_permanent(self) -> None:
        """Remove every checkpoint but those of `keep_every`: the run is over."""
        if self._processes.is_main:
            self._remove(list_checkpoints(self._folder.parent))

    def _finish(
        self,
        written: Future[Any] | None,
        temporary: Path,
        final: Path,
        progress: Mapping[str, Any],
        needed: Iterable[int],
    ) -> None:
        with _disk_errors(final, temporary):
            if written is not None:
                written.result()
            if not self._processes.is_main:
                return
            # torch has seen to it that every process has written its part when the main one comes here
            (temporary / PROGRESS_FILE).write_text(json.dumps(progress), encoding="utf-8")
            write_manifest(temporary, {})
            put_on_disk(temporary)
            shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step
            temporary.replace(final)
            sync_folder(final.parent)
            paths = list_checkpoints(self._folder.parent)
            kept = paths[-self._execution.keep_last :]
            for step in needed:
                kept += [path for path in paths if checkpoint_step(path) <= step][-1:]
            self._remove([path for path in paths if path not in kept])

    def _remove(self, paths: list[Path], *, even_permanent: bool = False) -> None:
        keep_every = None if even_permanent else self._execution.keep_every
        for path in paths:
            if keep_every is None or checkpoint_step(path) % keep_every != 0:
                doomed = path.with_name(f".{path.name}.removed")
                path.replace(doomed)  # so that a kill while removing leaves nothing that looks like a checkpoint
                shutil.rmtree(doomed, ignore_errors=True)


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
            return SavedCheckpoint(path, json.loads((path / PROGRESS_FILE).read_text(encoding="utf-8")))
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


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Restore the weights alone, in one process.

    Raises:
        InputError: the checkpoint is damaged or of another model.
    """
    state = {f"model.{name}": tensor for name, tensor in get_model_state_dict(model).items()}
    try:
        if read_manifest(checkpoint) is None:
            raise ValueError("there is no such folder")
        known = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
        if others := [name for name in known if name.startswith("model.") and name not in state]:
            raise ValueError(
                f"beside the weights of a {type(model).__name__} it holds {others[0].removeprefix('model.')}: it is of "
                "a run that changes its model on the way, as the removal of norms does, and ends with a whole one"
            )
        load(state, checkpoint_id=checkpoint, no_dist=True)
    except (RuntimeError, ValueError, KeyError, OSError, CheckpointException) as error:
        raise InputError(f"{checkpoint} is no checkpoint that can be read ({_first_line(error)})") from error
    set_model_state_dict(model, _part(state, "model."))


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> dict[str, Tensor]:
    """Return all tensors of a run by name; the model's and the optimiser's are theirs, not copies."""
    optimizer_state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_FLAT)
    weights = get_model_state_dict(model, options=_TRAINED)
    state: dict[str, Any] = {f"model.{name}": tensor for name, tensor in weights.items()}
    # what is no tensor there (learning rate, betas, ...) follows from the recipe
    state |= {f"optimizer.{name}": value for name, value in optimizer_state.items() if isinstance(value, Tensor)}
    state[f"random_state.{rank}"] = torch.get_rng_state()
    if torch.cuda.is_available():
        state[f"random_state_cuda.{rank}"] = torch.cuda.get_rng_state()
    return state


def _put_back(state: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    set_model_state_dict(model, _part(state, "model."), options=_TRAINED)
    complete: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_FLAT)
    set_optimizer_state_dict(model, optimizer, {**complete, **_part(state, "optimizer.")}, options=_FLAT)
    if (random_state := state.get(f"random_state.{rank}")) is not None:
        torch.set_rng_state(random_state)
    if (random_state := state.get(f"random_state_cuda.{rank}")) is not None:
        torch.cuda.set_rng_state(random_state)


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _disk_errors(final: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except (Exception, CheckpointException) as error:  # torch's is no Exception
        reason = disk_reason(error)
        if reason is None:
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(
            f"the checkpoint {final} could not be written ({reason}). Those before it are intact: make room, and run "
            "the same command again to go on from the newest"
        ) from error


def disk_reason(error: BaseException) -> str | None:
    """Return the system's reason if an error is that a file cannot be written, whichever library says it; else None."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, CheckpointException):
        reasons = (disk_reason(failure[0]) for failure in error.failures.values())
        return next((reason for reason in reasons if reason is not None), None)
    if number := _RUST_ERROR.search(str(error)):
        return os.strerror(int(number[1]))
    if "PytorchStreamWriter" not in str(error) and "enforce fail" not in str(error):
        return None
    # torch's zip writer stumbles over what was not written, after the system has said why
    before = error.__cause__ or error.__context__
    return (before and disk_reason(before)) or os.strerror(errno.ENOSPC)
