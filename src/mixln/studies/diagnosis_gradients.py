"""Gradient norms of a diagnosis: of the model as it is, and of a freshly initialised one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from mixln.depth.batches import ModelBatch
from mixln.depth.forward import model_device
from mixln.depth.gradients import gradient_norms
from mixln.depth.stack import BlockStack, find_block_stack
from mixln.errors import InputError
from mixln.report.diagnosis import ModelDiagnosis
from mixln.studies.diagnosis_measures import with_series

GRADIENT_SERIES: dict[str, Callable[[BlockStack], BlockStack]] = {
    "gradient_norm": lambda stack: stack,
    "gradient_norm_at_init": lambda stack: find_block_stack(fresh_model(stack.model), stack.name),
}
"""The series, and the model that each is of."""


def with_gradient_norms(
    diagnosis: ModelDiagnosis,
    name: str,
    stack: BlockStack,
    batches: Iterable[ModelBatch],
    autocast_dtype: torch.dtype | None,
) -> ModelDiagnosis:
    """The diagnosis with a series of `GRADIENT_SERIES`, or a note if weights are offloaded.

    Args:
        diagnosis: so far.
        name: of the series.
        stack: of the model that is diagnosed.
        batches: with targets; gone through twice.
        autocast_dtype: autocast to this; None: the model's own precision.

    Raises:
        InputError: no position with a target, or no fresh model can be made.
    """
    measured = GRADIENT_SERIES[name](stack)
    if any(parameter.is_meta for parameter in measured.layers.parameters()):
        note = f"Weights are offloaded (device_map) and take no gradients, so {name} was left out."
        return replace(diagnosis, notes=[*diagnosis.notes, note])
    norms = gradient_norms(measured, batches, autocast_dtype=autocast_dtype)
    return with_series(diagnosis, name, "layer", "nats per token and unit of weight", norms)


def fresh_model(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model of the same config with new weights, on the same device and in the same precision.

    Raises:
        InputError: it is not a Hugging Face model.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"a {type(model).__name__} has no config to initialise a fresh one from")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model)._from_config(copy.deepcopy(model.config))
    return nn.Module.to(fresh, device=model_device(model), dtype=model.dtype)
