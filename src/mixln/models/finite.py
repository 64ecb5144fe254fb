"""Whether the weights of a model are numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mixln.errors import InputError

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def require_finite_parameters(model: nn.Module) -> None:
    """Make sure that no weight is infinite or not a number (NaN), and that no buffer holds NaN.

    A model with one such value answers with numbers that mean nothing, or with NaN everywhere. Each tensor is read
    once, and no copy is made of it. A buffer may be infinite: masks are. Weights on the
    meta device (offloaded, or not loaded yet) and the tensors of quantisation libraries are skipped.

    Args:
        model: any.

    Raises:
        InputError: there is one; the message names the tensor, the number of such values and the shape.
    """
    for kind, name, tensor in _tensors(model):
        if tensor.is_meta or not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if type(local) not in _PLAIN or _extremes_are_finite(local):
            continue
        nans, infinities = int(local.isnan().sum()), int(local.isinf().sum())
        if nans or (infinities and kind == "weight"):
            raise InputError(
                f"the {kind} {name} of this {type(model).__name__} has {nans} values that are not a number (NaN) and "
                f"{infinities} that are infinite, of shape {tuple(tensor.shape)}: the checkpoint is damaged, or "
                "training diverged. Give another checkpoint"
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield "weight", name, parameter.detach()
    for name, buffer in model.named_buffers():
        yield "buffer", name, buffer.detach()


def _extremes_are_finite(tensor: Tensor) -> bool:
    """NaN comes through a minimum and a maximum, which take no memory."""
    if tensor.dtype.itemsize == 1:
        tensor = tensor.to(torch.float32)
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())
