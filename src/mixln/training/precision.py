"""The precision of a run: float32 weights, and bfloat16 where matrices are multiplied if the hardware has it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from mixln.training.config import Recipe


def resolve_precision(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """Return the dtype to autocast to, or None for float32 throughout."""
    if recipe.precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
        return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else None
    return torch.bfloat16 if recipe.precision == "bfloat16" else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return the context that multiplies matrices in `dtype`; None: in the weights' own."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
