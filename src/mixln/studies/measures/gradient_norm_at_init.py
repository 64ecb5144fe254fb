"""Gradient norm of each layer of a freshly initialised model."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from mixln.errors import InputError
from mixln.measure.forward import model_device
from mixln.models.anatomy import BlockStack, find_block_stack
from mixln.studies.measures.gradient_norm import GradientNorms
from mixln.studies.measuring import Given


class _AtInit(GradientNorms):
    def is_wanted(self, given: Given) -> bool:
        return super().is_wanted(given) and given.config.fresh_gradients

    def measured_stack(self, given: Given) -> BlockStack:
        return find_block_stack(_fresh_model(given.stack.model), given.stack.name)


def _fresh_model(model: nn.Module) -> nn.Module:
    """A model of the same config with new weights, on the same device and in the same precision.

    Raises:
        InputError: it is not a Hugging Face model.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"a {type(model).__name__} has no config to initialise a fresh one from")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = type(model)._from_config(copy.deepcopy(model.config))
    return nn.Module.to(fresh, device=model_device(model), dtype=model.dtype)


ENTRY = _AtInit("gradient_norm_at_init", 101)
