"""The folder of a run: whose it is, and the finished model in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mixln.errors import InputError
from mixln.files import put_on_disk, whole_folder, write_file
from mixln.training.checkpoint import CHECKPOINTS_FOLDER, disk_reason
from mixln.training.config import Recipe
from mixln.training.metrics import METRICS_FILE

RECIPE_FILE = "recipe.json"
MODEL_FOLDER = "model"


@contextmanager
def claimed_folder(
    folder: Path, recipe: Recipe, data_fingerprint: str, model: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Hold a run's folder for this process alone, created if need be, after making sure that its run is this one.

    Args:
        folder: of the run.
        recipe: of the run.
        data_fingerprint: of its data.
        model: fields that stand in the recipe's place, if its model is not the recipe's.

    Raises:
        InputError: the run in it is of another recipe or other data, another process is at it, or it cannot be written.
    """
    path = folder / RECIPE_FILE
    given = {**(model or {}), "data_fingerprint": data_fingerprint}
    wanted = {**recipe.identity(), **given}
    if not path.exists():
        if foreign := [name for name in (MODEL_FOLDER, CHECKPOINTS_FOLDER, METRICS_FILE) if (folder / name).exists()]:
            raise InputError(
                f"{folder} holds {foreign[0]}, but no {RECIPE_FILE} that says of which run. Choose another"
            )
        write_file(path, json.dumps({**recipe.to_dict(), **given}, indent=2) + "\n")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found = {name: value for name, value in found.items() if name in wanted or name not in recipe.to_dict()}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a valid recipe. Delete {folder} to start this run over") from error
    if changes := list(differences(found, json.loads(json.dumps(wanted)))):
        raise InputError(f"{folder} holds a run of another recipe ({'; '.join(changes)}). Choose another folder")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"another process is training in {folder}. Wait for it, or choose another folder") from error
    try:
        for leftover in folder.glob(f".{MODEL_FOLDER}.*.tmp"):  # of a kill; whoever wrote it does not hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


def differences(before: object, after: object, name: str = "") -> Iterator[str]:
    """Yield a sentence for every value that differs between two nested dictionaries."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), f"{name}.{key}" if name else key)
    elif before != after:
        yield f"{name} was {before}, is {after}"


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    weights: dict[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    mend: str,
) -> None:
    """Write a model and its tokenizer as a Hugging Face folder, whole or not at all.

    Args:
        model: it may be sharded, if `weights` are given.
        tokenizer: saved beside it.
        folder: to write.
        weights: all of them, unsharded; None: the model's own.
        files: name and text of what else goes into the folder.
        mend: what to do about a disk that does not take it, a sentence for the user.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        with whole_folder(folder) as temporary:
            model.save_pretrained(temporary, state_dict=weights)
            tokenizer.save_pretrained(temporary)
            for name, text in (files or {}).items():
                (temporary / name).write_text(text, encoding="utf-8")
            put_on_disk(temporary)  # what it was made from may be removed next
    except Exception as error:
        reason = disk_reason(error)
        if reason is None:
            raise
        raise InputError(f"the model could not be saved in {folder} ({reason}). {mend}") from error


def load_model(folder: Path, device: torch.device) -> PreTrainedModel:
    """Open a finished model, in evaluation mode.

    Raises:
        InputError: it cannot be read.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(folder)  # an architecture may have no sdpa
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"the finished model {folder} is damaged ({error}). Delete it to train it anew") from error
    torch.nn.Module.to(model, device)
    return model.eval()
