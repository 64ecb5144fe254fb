"""How a batch goes through a model when it is measured: inputs, no cache, dropout off, precision."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mixln import modes
from mixln.errors import InputError
from mixln.models.encoding import IGNORED_TARGET
from mixln.models.foreign import naming_failures

_OPTIONAL = ("use_cache", "logits_to_keep")
"""Arguments that save work: a model that does not take them computes the same."""


_INPUTS = ("input_ids", "pixel_values", "input_features", "input_values")
"""How the names of arguments end that a model may not be able to do without."""


class TokenBatch(Protocol):
    """Packed rows of tokens, all tensors int64 of shape (batch, sequence).

    `targets[i, t]` is the token to predict from position t (already shifted), -100 where there is none; these
    positions are the padding and the last token of a row or document, and they stay out of every average.
    `position_ids` count up by one inside a document and restart at each document: transformers takes the mask that
    keeps attention inside documents from them.
    """

    @property
    def input_ids(self) -> Tensor:
        """Token ids, (batch, sequence)."""
        ...

    @property
    def targets(self) -> Tensor:
        """The token that follows each position, or -100, (batch, sequence)."""
        ...

    @property
    def position_ids(self) -> Tensor:
        """The place of each token in its document, (batch, sequence)."""
        ...


def counted_positions(batch: TokenBatch) -> Tensor:
    """The positions that averages over tokens run over: bool (batch, sequence), true where `targets != -100`."""
    return batch.targets != IGNORED_TARGET


def model_device(model: nn.Module) -> torch.device:
    """The device that the model takes its input on: that of its first parameter.

    If accelerate keeps that elsewhere until it is used (then it is on the meta device here), it is the one that
    accelerate runs the model on.

    Raises:
        InputError: the model has no parameters, or its weights are not loaded.
    """
    name, first = next(model.named_parameters(), (None, None))
    if first is None:
        raise InputError(f"a {type(model).__name__} has no parameters: there is nothing to measure")
    if not first.is_meta:
        return first.device
    hook: Any = getattr(model, "_hf_hook", None)
    if hook is None:
        raise InputError(
            f"the weights of this {type(model).__name__} are not loaded ({name} is on the meta device): load them "
            "before it is measured"
        )
    return torch.device(hook.execution_device)


def on_device(arguments: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Arguments of a model with their tensors on a device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def batch_logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    """One forward pass: logits of shape (batch, sequence, vocabulary) in the model's precision.

    Raises:
        InputError: as `call_model`.
    """
    device = model_device(model)
    arguments = {"input_ids": batch.input_ids.to(device), "position_ids": batch.position_ids.to(device)}
    return call_model(model, arguments).logits


def call_model(model: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """One forward pass that leaves nothing behind: without a cache of keys and values, whatever the config says.

    Given a cache, transformers does not look for documents in `position_ids`, and a block that runs again would find
    what it has put there before. An argument that the model does not take is left out where that changes nothing.

    Args:
        model: any module.
        arguments: its keyword arguments, on its device.

    Raises:
        ModelCallError: its forward fails.
        InputError: it takes no `position_ids`, and they keep documents in one row apart.
    """
    accepted = _accepted(model, arguments)
    what = f"a {type(model).__name__} cannot be run on this input"
    with _cache_off(model), naming_failures(what, _what_else_it_takes(model, accepted)):
        return model(**accepted)


def _what_else_it_takes(model: nn.Module, arguments: Mapping[str, Any]) -> str:
    names = [name for name in inspect.signature(model.forward).parameters if name.endswith(_INPUTS)]
    others = [name for name in names if name not in arguments]
    return f"It was given {', '.join(arguments)}" + (f", and also takes {', '.join(others)}" if others else "")


def _accepted(model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters
    given = dict(arguments)
    if "use_cache" in parameters:
        given["use_cache"] = False
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given
    for name in _OPTIONAL:
        if name not in parameters:
            given.pop(name, None)
    positions = None if "position_ids" in parameters else given.pop("position_ids", None)
    if positions is not None and not _are_as_counted(positions, given.get("attention_mask")):
        raise InputError(
            f"a {type(model).__name__} takes no position_ids, so documents in one row cannot be kept apart. Give one "
            "document in each row"
        )
    return given


def _are_as_counted(position_ids: Tensor, attention_mask: Tensor | None) -> bool:
    """Whether positions are what a model counts on its own: from 0 in each row, padding apart."""
    mask = torch.ones_like(position_ids) if attention_mask is None else attention_mask
    return bool(((mask.cumsum(-1) - 1 == position_ids) | (mask == 0)).all())


def configs_in(model: nn.Module) -> list[Any]:
    """The configs of a model and of its parts, each once."""
    found = (vars(module).get("config") for module in model.modules())
    return list({id(config): config for config in found if config is not None}.values())


@contextmanager
def _cache_off(model: nn.Module) -> Iterator[None]:
    """No part of a model makes a cache by itself inside the `with` block."""
    caching = [config for config in configs_in(model) if getattr(config, "use_cache", None) is True]
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True


def autocast(model: nn.Module, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` on the model's device; None: the model's own precision, also inside another autocast."""
    return modes.autocast(model_device(model), dtype)
