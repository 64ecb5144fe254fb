"""What a diagnosis has found so far, on disk: called again, the same diagnosis goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from mixln.announce import announce
from mixln.errors import InputError
from mixln.measure.batches import ModelBatch
from mixln.measure.performance import Performance
from mixln.records import decode, read_json
from mixln.storage import write_file
from mixln.studies.machine import describe_machine
from mixln.studies.measuring import Found, Given
from mixln.version import __version__

MEASURED_FOLDER = "measured"
"""In the folder of a report."""


@dataclass(frozen=True)
class _Part:
    """A measure that is finished.

    Attributes:
        found: what it has found.
        seconds: that it took.
    """

    found: Found
    seconds: float


@dataclass(frozen=True)
class _File:
    """What is kept of one model: whose it is, and the measures by their names."""

    identity: str
    parts: dict[str, _Part] = field(default_factory=dict)


class KeptMeasures:
    """Measures of one model that are finished, each taken once, by this call or by an earlier one.

    Args:
        folder: of the report; None: nothing is kept.
        identify: returns all that the numbers depend on, as JSON; None: it cannot be told, so nothing is kept.

    Attributes:
        seconds: that the measures took which were found finished.
    """

    def __init__(self, folder: Path | None, identify: Callable[[], Mapping[str, Any] | None]) -> None:
        self.seconds = 0.0
        self._path: Path | None = None
        if folder is None or (identity := identify()) is None:
            return
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._path = folder / MEASURED_FOLDER / f"{digest[:16]}.json"
        self._file = _read(self._path, digest) or _File(digest)
        if self._file.parts:
            announce(("going on", f"these measures are finished: {', '.join(self._file.parts)} ({self._path})"))

    @property
    def is_on_disk(self) -> bool:
        """Whether measures are kept."""
        return self._path is not None

    def has(self, name: str) -> bool:
        """Whether a measure is finished."""
        return self._path is not None and name in self._file.parts

    def take(self, name: str, measure: Callable[[], Found]) -> Found:
        """Return what a measure finds, from disk if it is finished.

        Args:
            name: of the measure.
            measure: takes it.

        Raises:
            InputError: what was found cannot be written; or as `measure`.
        """
        if self._path is None:
            return measure()
        if (part := self._file.parts.get(name)) is not None:
            self.seconds += part.seconds
            return part.found
        started = time.perf_counter()
        found = measure()
        self._file.parts[name] = _Part(found, time.perf_counter() - started)
        # infinite numbers are results: a changed model may overflow
        write_file(self._path, json.dumps(asdict(self._file)) + "\n")
        return found


def _read(path: Path, digest: str) -> _File | None:
    """What is kept; None if there is nothing, or it is damaged: then it is measured again."""
    try:
        file = decode(_File, read_json(path), path.name)
    except (OSError, InputError):
        return None
    return file if file.identity == digest else None


def identity_of(model: nn.Module, batches: Iterable[ModelBatch], given: Given) -> dict[str, Any] | None:
    """Return all that decides the numbers of a diagnosis, as JSON.

    Args:
        model: what is measured: its class, config and every weight count, not where it was loaded from.
        batches: on what.
        given: how.

    Returns:
        None: it cannot be told, of weights that are not loaded or a performance of the caller's own.
    """
    weights, performance = _digest_of_weights(model), given.performance
    if weights is None or (performance is not None and type(performance).__module__ != Performance.__module__):
        return None
    return {
        "model": [f"{type(model).__module__}.{type(model).__qualname__}", _config_of(model), weights],
        "batches": _digest(
            part for batch in batches for part in (batch.arguments, batch.counted, batch.targets, batch.documents)
        ),
        "measured": [
            asdict(given.config),
            given.stack.name,
            type(performance).__qualname__,
            str(given.autocast_dtype),
        ],
        "machine": describe_machine(),
        "versions": [__version__, _code(), transformers.__version__],
    }


def _config_of(model: nn.Module) -> Any:
    """The config of a model without where it came from; of any other module, what it prints."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return repr(model)
    fields = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    attention = getattr(config, "_attn_implementation", None)
    return json.loads(json.dumps([fields, attention], default=str, sort_keys=True))


def _digest_of_weights(model: nn.Module) -> str | None:
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:  # offloaded
            return None
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        try:
            digest.update(_bytes(tensor))
        except (RuntimeError, TypeError, NotImplementedError):  # of a kind that cannot be looked into
            return None
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _digest(values: Iterable[Any]) -> str:
    """sha256 over tensors, and mappings of them and of plain values."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(_bytes(value))
        elif isinstance(value, Mapping):
            for name, inner in sorted(value.items()):
                digest.update(f"{name}\n".encode())
                add(inner)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for inner in value:
                add(inner)
        else:
            digest.update(f"{value!r}\n".encode())

    for value in values:
        add(value)
    return digest.hexdigest()


def _code() -> str:
    """A hash of this library's own source: who works on a measure wants it taken anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
