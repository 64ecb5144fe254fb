"""Sums over tokens in float64, so that the size of the batches leaves no trace in a measure."""

from __future__ import annotations

import torch

from mixln.errors import InputError


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """bfloat16 and float16 to float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def where_float64_is(values: torch.Tensor) -> torch.Tensor:
    """The same values on a device that has float64: the CPU for Apple's GPUs, else where they are."""
    return values.cpu() if values.device.type == "mps" else values


def no_tokens_error() -> InputError:
    """The error of a measure that was given nothing to average over."""
    return InputError(
        "no token to measure on: the batches are empty, or all their targets are -100; give at least one batch with "
        "a target (an iterator that was already read through gives none: pass a list)"
    )
