"""How many tokens a model takes in a row, found by running it: limits of configs count other things (RoBERTa's 514)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mixln.measure.forward import call_model, model_device
from mixln.models.encoding import embedding_size
from mixln.models.foreign import ModelCallError
from mixln.modes import evaluation_mode


def longest_row(model: nn.Module, wanted: int) -> int:
    """Return the longest row of tokens, up to `wanted`, that a model's forward takes.

    If the model takes no row of any length, length is not the reason, and `wanted` is returned.

    Args:
        model: called with `input_ids` and `attention_mask`, (1, tokens).
        wanted: at least 1.
    """
    if _takes(model, wanted) or not _takes(model, 1):
        return wanted
    return 1 + bisect_left(range(2, wanted), True, key=lambda length: not _takes(model, length))


def probe_tokens(model: nn.Module, length: int) -> torch.Tensor:
    """Return token ids (1, length), on the model's device, the same every time, none of them the model's padding."""
    config: Any = getattr(model, "config", None)
    # a table can be longer than the vocabulary, by prompts of its own (CPM-Ant) or up to a round number
    sizes = (embedding_size(model), getattr(config, "vocab_size", None))
    rows = min([size for size in sizes if isinstance(size, int)], default=256)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(rows // 2, rows, (1, length), generator=generator)
    padding = getattr(config, "pad_token_id", None)
    tokens[tokens == padding] = rows // 2 - 1
    return tokens.to(model_device(model))


def _takes(model: nn.Module, length: int) -> bool:
    tokens = probe_tokens(model, length)
    try:
        with evaluation_mode(model), torch.no_grad(), _CheckedIndices():
            call_model(model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    except ModelCallError:
        return False
    return True


class _CheckedIndices(TorchDispatchMode):
    """Indices outside of a table raise before the kernel runs: on a GPU that would end the process's use of it."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        if func is torch.ops.aten.embedding.default:
            _check(args[1], args[0].shape[0])
        elif func in (torch.ops.aten.index_select.default, torch.ops.aten.gather.default):
            _check(args[2], args[0].shape[args[1]])
        return func(*args, **(kwargs or {}))


def _check(indices: torch.Tensor, size: int) -> None:
    if indices.numel() and int(indices.max()) >= size:
        raise IndexError(f"index {int(indices.max())} of a table of {size}")
