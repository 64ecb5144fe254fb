"""How a batch goes through a model when it is measured: inputs, dropout off, precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

IGNORED_TARGET = -100


class TokenBatch(Protocol):
    """Packed rows of tokens, all tensors int64 of shape (batch, sequence).

    `targets[i, t]` is what is to be predicted from position t (already shifted), -100 where nothing is; these
    positions are the padding and the last token of a row or document, and they stay out of every average.
    `position_ids` count up by one inside a document and restart at each document: transformers takes the mask that
    keeps attention inside documents from them.
    """

    @property
    def input_ids(self) -> torch.Tensor:
        """Token ids, (batch, sequence)."""
        ...

    @property
    def targets(self) -> torch.Tensor:
        """The token that follows each position, or -100, (batch, sequence)."""
        ...

    @property
    def position_ids(self) -> torch.Tensor:
        """The place of each token in its document, (batch, sequence)."""
        ...


def counted_positions(batch: TokenBatch) -> torch.Tensor:
    """The positions that averages over tokens run over: bool (batch, sequence), true where `targets != -100`."""
    return batch.targets != IGNORED_TARGET


def model_device(model: nn.Module) -> torch.device:
    """The device that the model takes its input on: that of its first parameter.

    If accelerate keeps that elsewhere until it is used (then it is on the meta device here), it is the one that
    accelerate runs the model on.
    """
    device = next(model.parameters()).device
    hook: Any = getattr(model, "_hf_hook", None)
    return torch.device(hook.execution_device) if device.type == "meta" and hook is not None else device


def batch_logits(model: nn.Module, batch: TokenBatch) -> torch.Tensor:
    """One forward pass: logits of shape (batch, sequence, vocabulary) in the model's precision.

    Without a cache: given one, transformers does not look for documents in `position_ids`.
    """
    device = model_device(model)
    input_ids, position_ids = batch.input_ids.to(device), batch.position_ids.to(device)
    return model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside the block; each module gets back the mode that it had, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(model: nn.Module, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` on the model's device; None: the model's own precision, also inside another autocast."""
    return torch.autocast(model_device(model).type, dtype=dtype, enabled=dtype is not None)
