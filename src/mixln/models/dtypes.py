"""The precision that each tensor of a model came in, to go back to when it is saved."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from torch import Tensor, nn
from transformers import PreTrainedModel


class OriginalDtypes:
    """What the floating-point weights and buffers of a model were, before they became float32 for training.

    Args:
        model: as it was opened.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model_dtype = model.dtype
        self._by_name = {name: tensor.dtype for name, tensor in _floating_tensors(model)}

    def restore(self, model: nn.Module) -> None:
        """Convert each tensor back; one that has come since is as the weight of its module was, or as the model."""
        wanted = {
            id(tensor): self._by_name.get(name)
            or self._by_name.get(f"{name.rpartition('.')[0]}.weight", self._model_dtype)
            for name, tensor in _floating_tensors(model)
        }
        nn.Module._apply(model, lambda tensor: tensor.to(wanted.get(id(tensor), tensor.dtype)))


def _floating_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor
