"""What a diagnosis has found so far, on disk: called again, the same diagnosis goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from mixln.measure.batches import ModelBatch
from mixln.measure.performance import Performance
from mixln.studies.kept_parts import KeptParts
from mixln.studies.machine import describe_machine
from mixln.studies.measuring import Found, Given
from mixln.version import __version__

MEASURED_FOLDER = "measured"
"""In the folder of a report."""


class KeptMeasures(KeptParts[Found]):
    """Measures of one model that are finished, each taken once, by this call or by an earlier one.

    Args:
        folder: of the report; None: nothing is kept.
        identify: returns all that the numbers depend on, as JSON; None: it cannot be told, so nothing is kept.
    """

    def __init__(self, folder: Path | None, identify: Callable[[], Mapping[str, Any] | None]) -> None:
        super().__init__(Found, None if folder is None else folder / MEASURED_FOLDER, identify, "measures")


def identity_of(model: nn.Module, batches: Iterable[ModelBatch], given: Given) -> dict[str, Any] | None:
    """Return all that decides the numbers of a diagnosis, as JSON.

    Args:
        model: what is measured: its class, config and every weight count, not where it was loaded from.
        batches: on what.
        given: how.

    Returns:
        None: it cannot be told, of weights that are not loaded or a performance of the caller's own.
    """
    weights, performance = digest_of_weights(model), given.performance
    if weights is None or (performance is not None and type(performance).__module__ != Performance.__module__):
        return None
    return {
        "model": [f"{type(model).__module__}.{type(model).__qualname__}", config_of(model), weights],
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
        "versions": [__version__, code_digest(), transformers.__version__],
    }


def config_of(model: nn.Module) -> Any:
    """The config of a model without where it came from; of any other module, what it prints."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return repr(model)
    fields = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    attention = getattr(config, "_attn_implementation", None)
    return json.loads(json.dumps([fields, attention], default=str, sort_keys=True))


def digest_of_weights(model: nn.Module) -> str | None:
    """A hash of every parameter and buffer; None: some are not loaded, or cannot be looked into."""
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
    array: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


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


def code_digest() -> str:
    """A hash of this library's own source: who works on a measure wants it taken anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
