"""Checkpoints from which an interrupted run goes on as if nothing had happened.

A run's folder has `checkpoints/step_00000100/`: what `torch.distributed.checkpoint` writes (a part by each process),
`progress.json` (what is no tensor), what the task adds to make a model of the weights (of a language model
`huggingface/`: config and tokenizer), and `manifest.json` with a checksum of every file. The folder gets its name when
all of it is on disk; until then it is `.step_00000100.tmp`.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from mixln.errors import InputError
from mixln.manifest import read_manifest, write_manifest
from mixln.modes import all_requiring_grad
from mixln.storage import disk_errors, put_on_disk, sync_folder
from mixln.training.config import ExecutionConfig
from mixln.training.distributed import Processes
from mixln.training.saved_checkpoint import (
    CHECKPOINTS_FOLDER,
    PROGRESS_FILE,
    SavedCheckpoint,
    checkpoint_step,
    list_checkpoints,
    newest_whole,
    read_progress,
)
from mixln.training.tensor_files import TensorReader, first_line, read_tensors

# a run of one process is no mistake; the remark comes from a background thread, where no context can hold it back
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
"""Weights that are not trained come from where the run got them."""


def _as_built(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """Within the block every parameter of the optimiser requires a gradient, as when the run was built.

    A parameter that is frozen during a run has been trained before: it belongs into checkpoints all the same.
    """
    return all_requiring_grad(one for group in optimizer.param_groups for one in group["params"])


class Checkpoints:
    """The checkpoints of one run.

    Weights, optimiser state, random state, the tensors of callbacks and what `progress` says; the schedule and the
    position in the data are functions of the step. Written while training goes on, unless the configuration says
    otherwise; restored on any number of processes, sharded in any way.

    Args:
        folder: of the run.
        processes: of the run; all of them call every method.
        execution: how many to keep, and whether to write in the background.
        describe: writes into a checkpoint's folder what makes the weights of a model a model again.
    """

    def __init__(
        self, folder: Path, processes: Processes, execution: ExecutionConfig, describe: Callable[[Any, Path], None]
    ) -> None:
        self._folder = folder / CHECKPOINTS_FOLDER
        self._processes = processes
        self._execution = execution
        self._describe = describe
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
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: dict[str, Any],
        others: Mapping[str, Tensor],
        *,
        needed: Iterable[int] = (),
    ) -> None:
        """Begin to write a checkpoint of a step; the one before is complete by then.

        Args:
            step: the number of steps made.
            model: the model, without DDP's wrapper.
            optimizer: over its parameters.
            progress: whatever else resuming needs, as JSON.
            others: tensors of callbacks.
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
                temporary.mkdir(parents=True)
                self._describe(model, temporary)
            self._processes.wait_for_all()
            state = _tensors(model, optimizer, others, self._processes.rank)
            write = async_save if self._execution.asynchronous_checkpoints else save
            written = write(state, checkpoint_id=temporary, process_group=self._group, no_dist=alone)
        finish = partial(self._finish, written, temporary, final, progress, needed)
        if self._execution.asynchronous_checkpoints:
            assert isinstance(written, Future)  # otherwise the checkpoint would be finished before it is written
            self._pending = self._executor.submit(finish)
        else:
            finish()

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
        return self._processes.on_main(lambda: newest_whole(self._folder.parent, read_progress, last_step))

    def restore(
        self,
        checkpoint: SavedCheckpoint,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        others: Mapping[str, Tensor],
    ) -> None:
        """Give weights, optimiser, random state and the tensors of callbacks the values that they had.

        Raises:
            InputError: the checkpoint is of another model, or damaged, or holds more than tensors.
        """
        path = checkpoint.path
        state = _tensors(model, optimizer, others, self._processes.rank)
        try:
            reader = TensorReader(path)
        except ValueError as error:
            raise InputError(f"the checkpoint {path} is not used: {error}. Delete it to go on without it") from error
        # a process that was not there when the checkpoint was written has no random state in it
        wanted = {name: tensor for name, tensor in state.items() if name in reader.names or _is_weight(name)}
        try:
            read_tensors(wanted, reader, self._group, alone=self._processes.mesh is None)
        except ValueError as error:
            raise InputError(
                f"the checkpoint {path} is of another model, or damaged ({error}). Delete it to go on without it"
            ) from error
        _put_back(wanted, model, optimizer, self._processes.rank)

    def remove_all_but_permanent(self) -> None:
        """Remove every checkpoint but those of `keep_every`: the run is over."""
        if self._processes.is_main:
            self._remove(list_checkpoints(self._folder.parent))

    def _finish(
        self,
        written: object,
        temporary: Path,
        final: Path,
        progress: Mapping[str, Any],
        needed: Iterable[int],
    ) -> None:
        with _disk_errors(final, temporary):
            if isinstance(written, Future):
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


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Restore the weights alone, in one process.

    Raises:
        InputError: the checkpoint is damaged or of another model.
    """
    state = {f"model.{name}": tensor for name, tensor in get_model_state_dict(model).items()}
    try:
        if read_manifest(checkpoint) is None:
            raise ValueError("there is no such folder")
        reader = TensorReader(checkpoint)
        if others := sorted(name for name in reader.names if name.startswith("model.") and name not in state):
            raise ValueError(
                f"beside the weights of a {type(model).__name__} it holds {others[0].removeprefix('model.')}: it is of "
                "a run that changes its model on the way, as the removal of norms does, and ends with a whole one"
            )
        read_tensors(state, reader, None, alone=True)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{checkpoint} is no checkpoint that can be read ({first_line(error)}). Export another one"
        ) from error
    set_model_state_dict(model, _part(state, "model."))


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, others: Mapping[str, Tensor], rank: int
) -> dict[str, Tensor]:
    """Return all tensors of a run by name; those of model, optimiser and callbacks are theirs, not copies."""
    with _as_built(optimizer):
        optimizer_state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_FLAT)
        weights = get_model_state_dict(model, options=_TRAINED)
    state: dict[str, Any] = {f"model.{name}": tensor for name, tensor in weights.items()}
    # what is no tensor there (learning rate, betas, ...) follows from the recipe
    state |= {f"optimizer.{name}": value for name, value in optimizer_state.items() if isinstance(value, Tensor)}
    state |= {f"callback.{name}": tensor for name, tensor in others.items()}
    state[f"random_state.{rank}"] = torch.get_rng_state()
    if torch.cuda.is_available():
        state[f"random_state_cuda.{rank}"] = torch.cuda.get_rng_state()
    return state


def _is_weight(name: str) -> bool:
    return not name.startswith("random_")


def _put_back(state: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    with _as_built(optimizer):
        set_model_state_dict(model, _part(state, "model."), options=_TRAINED)
        complete: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_FLAT)
        set_optimizer_state_dict(model, optimizer, {**complete, **_part(state, "optimizer.")}, options=_FLAT)
    if (random_state := state.get(f"random_state.{rank}")) is not None:
        torch.set_rng_state(random_state)
    if (random_state := state.get(f"random_state_cuda.{rank}")) is not None:
        torch.cuda.set_rng_state(random_state)


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _disk_errors(final: Path, temporary: Path) -> AbstractContextManager[None]:
    fix = "Those before it are intact: make room, and run the same command again to go on from the newest"
    return disk_errors(f"the checkpoint {final} could not be written", fix, leftover=temporary)
