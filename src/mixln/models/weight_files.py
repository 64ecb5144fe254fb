"""The weight files of a checkpoint: which there are, and what they hold, before any is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import PreTrainedConfig, PreTrainedModel

from mixln.errors import InputError
from mixln.records import read_json
from mixln.system_errors import exhaustion

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_FORMS = ((WEIGHTS, WEIGHTS_INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json"))

_MOST_MODULES_PER_TENSOR = 50
_ALWAYS_ALLOWED = 20_000
"""Modules of a small model with few tensors (dropout, activations ...)."""
_MOST_PACKED = 32
"""Parameters that one number of a quantised checkpoint can stand for."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weight file.

    Attributes:
        file: where it is stored.
        shape: its shape.
    """

    file: Path
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files that transformers reads in a folder: one, those of the index, or none.

    Safetensors come before pickles.

    Raises:
        InputError: the index is damaged, or names a file that is not in the folder.
    """
    for whole, index in _FORMS:
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return _indexed(folder / index)
    return []


def _indexed(index: Path) -> list[Path]:
    try:
        found = read_json(index)
    except (OSError, InputError) as error:
        raise InputError(f"{index} is damaged: {error}. Copy it anew") from error
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index} is damaged: it has no weight_map (parameter name to file). Copy it anew")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            raise InputError(
                f"{index} is damaged: its weight_map names {name!r}, which is no file of weights beside it. "
                "Copy it anew"
            )
    files = [index.parent / name for name in sorted(set(names.values()))]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} does not exist, although the index names it. Copy it anew")
    return files


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return name, file and shape of every tensor in the weight files of a folder.

    Raises:
        InputError: as `read_tensors`.
    """
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        if file.suffix == ".bin":
            found |= {name: StoredTensor(file, tuple(tensor.shape)) for name, tensor in _unpickled(file).items()}
            continue
        with _naming_damage(file), safe_open(file, framework="pt") as opened:
            names = opened.keys()
            found |= {name: StoredTensor(file, tuple(opened.get_slice(name).get_shape())) for name in names}
    return found


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor in the weight files of a folder, by name; without such files there are none.

    Raises:
        InputError: a file is damaged or missing from the set, or holds anything but tensors.
    """
    found: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        with _naming_damage(file):
            found |= _unpickled(file) if file.suffix == ".bin" else load_file(file)
    return found


@contextmanager
def open_weights(file: Path) -> Iterator[Callable[[str], torch.Tensor]]:
    """Yield a function that reads a tensor of a weight file by its name.

    Raises:
        InputError: a pickle holds anything but tensors.
        OSError, SafetensorError: the file cannot be read.
    """
    if file.suffix == ".bin":
        yield _unpickled(file).__getitem__
        return
    with safe_open(file, framework="pt") as opened:
        yield opened.get_tensor


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a pickle, mapped and not loaded where its format allows that; nothing in it is run."""
    with _naming_damage(file):
        found: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout is torch.strided
        for name, value in found.items()
    ):
        raise InputError(f"{file} does not hold a state dict (parameter name to dense tensor)")
    return found


@contextmanager
def _naming_damage(file: Path) -> Iterator[None]:
    """Turn what a damaged file raises inside the `with` block into one message: of a pickle anything can come."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or exhaustion(error) is not None:
            raise
        if file.suffix != ".bin":
            raise InputError(f"{file} is damaged or cut off ({error}). Copy it anew") from error
        # the reason that PyTorch gives comes with the advice to run what is in the file
        raise InputError(
            f"{file} is damaged, or holds more than tensors, of which nothing was run ({type(error).__name__}). Copy "
            "it anew, or save its tensors as safetensors"
        ) from error


def require_plausible_size(
    build: Callable[[PreTrainedConfig], PreTrainedModel], config: PreTrainedConfig, folder: Path
) -> None:
    """Build the model of a config without memory, and stop as soon as it is far larger than the weights in the folder.

    A config is a few bytes: a slip or an attack in it (a million layers) would otherwise cost minutes and gigabytes
    before the weights are looked at.

    Args:
        build: makes the model.
        config: of the folder.
        folder: with weights; without them nothing is known, and nothing is built.

    Raises:
        InputError: it is far larger.
    """
    tensors = stored_tensors(folder)
    if not tensors:
        return
    numbers = sum(tensor.numel for tensor in tensors.values())
    most = {
        "modules": max(_ALWAYS_ALLOWED, len(tensors) * _MOST_MODULES_PER_TENSOR),
        "parameters": numbers * _MOST_PACKED + _ALWAYS_ALLOWED,
    }
    found = dict.fromkeys(most, 0)

    def count(what: str, number: int) -> None:
        found[what] += number
        if found[what] > most[what]:
            raise InputError(
                f"{folder}: config.json describes a model of more than {most[what]:,} {what}, and the weight files "
                f"hold {len(tensors):,} tensors with {numbers:,} numbers. One of its sizes (num_hidden_layers, say) is "
                "wrong, or the weights are of another model"
            )

    def count_parameter(_module: Any, _name: str, parameter: torch.nn.Parameter | None) -> None:
        count("parameters", 0 if parameter is None else parameter.numel())

    with (
        torch.device("meta"),
        register_module_module_registration_hook(lambda *_: count("modules", 1)),
        register_module_parameter_registration_hook(count_parameter),
    ):
        build(config)
