"""Whether two outputs of a model are the same, but for rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mixln.errors import InputError
from mixln.measure.sums import at_least_float32

_OUTPUTS = ("logits", "last_hidden_state")


def main_output(output: Any) -> Tensor:
    """What a model's output is judged by: its logits, its last hidden states, or the first tensor in it.

    Raises:
        InputError: there is no tensor of floating point in it.
    """
    for name in _OUTPUTS:
        if isinstance(found := getattr(output, name, None), Tensor):
            return found
    found = next(floats_in(output), None)
    if found is None:
        raise InputError(f"the model returns a {type(output).__name__} without a tensor of numbers to judge it by")
    return found[1]


def floats_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of floating point in an output, each with its place, such as `past[0].key`."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from floats_in(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from floats_in(inner, f"{name}[{index}]")


def difference(one: Tensor | None, other: Tensor | None) -> float:
    """|| one - other || / || one || over the entries that are finite; infinite if others are, or the shapes differ.

    None stands for a model that cannot run, and equals only itself.
    """
    if one is None or other is None:
        return 0.0 if one is other else torch.inf
    if one.shape != other.shape:
        return torch.inf
    squares, sizes = 0.0, 0.0
    # row by row: logits are the largest tensor
    for row, other_row in zip(one, other, strict=True):
        finite = torch.isfinite(row)
        if not torch.equal(finite, torch.isfinite(other_row)):
            return torch.inf
        a, b = (torch.where(finite, at_least_float32(part), 0) for part in (row, other_row))
        squares += (a - b).norm().item() ** 2
        sizes += a.norm().item() ** 2
    return (squares / sizes) ** 0.5 if sizes else float(squares > 0)


def rounding(weights: Iterable[Tensor], output: Tensor) -> float:
    """The share of a norm that rounding may change: 64 units of the coarsest precision in use, at most 1 %."""
    kind = output.device.type
    used = {output.dtype, *(weight.dtype for weight in weights if weight.dtype in _PRECISIONS)}
    if torch.is_autocast_enabled(kind):
        used.add(torch.get_autocast_dtype(kind))
    return min(0.01, 64 * max(torch.finfo(dtype).eps for dtype in used))


_PRECISIONS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def nearly_equal(one: Tensor, other: Tensor, autocast_dtype: torch.dtype | None = None) -> bool:
    """Whether tensors are equal up to the rounding of products of other shapes, which grows from layer to layer.

    Args:
        one: tensor.
        other: tensor.
        autocast_dtype: of the autocast that they were computed under, if any.
    """
    return difference(one, other) <= min(0.03, 4096 * torch.finfo(autocast_dtype or one.dtype).eps)
