"""The layers of a language model, by name, and what goes through them in training.

A layer is a part of the model by depth: `embedding`, `layer_01` .. `layer_L`, `final_norm`, `head`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixln.data import Batch
from mixln.measure import record_block_inputs
from mixln.measure.forward import TokenBatch, counted_positions
from mixln.measure.sums import at_least_float32
from mixln.models.anatomy import find_anatomy

MEASURED_ROWS = 2
"""Rows of a batch that activations are measured on."""


def layer_activations(
    model: nn.Module, batch: TokenBatch, autocast_dtype: torch.dtype | None, rows: int = MEASURED_ROWS
) -> dict[str, Tensor]:
    """RMS and variance of the residual stream, from one more forward pass over the first rows, dropout off.

        activation_rms/<layer>     sqrt(mean over tokens and channels of y^2), y the output of the layer
        residual_variance/<layer>  variance over channels of x, the input of the layer, averaged over tokens

    x_l is the input of block l, x_(l+1) its output; `activation_rms/embedding` is of x_1,
    `residual_variance/final_norm` of x_(L+1). The variance is that of `mixln.measure.StreamGrowth` (Curse of
    Depth: Sun et al. 2025). Padding and other positions without a target stay out of both averages. Each process
    measures the rows that it is given.

    Args:
        model: a causal language model whose blocks `find_block_stack` finds.
        batch: (batch, sequence) tokens.
        autocast_dtype: autocast to this; None: the model's own precision.
        rows: so many rows of the batch.
    """
    few = Batch(batch.input_ids[:rows], batch.targets[:rows], batch.position_ids[:rows])
    states = record_block_inputs(model, few, autocast_dtype=autocast_dtype).hidden_states
    names = ["embedding", *_layer_names(len(states) - 1), "final_norm"]
    counted = counted_positions(few).to(states[0].device)
    values: dict[str, Tensor] = {}
    for index, state in enumerate(states):
        x = at_least_float32(state)
        values[f"activation_rms/{names[index]}"] = _mean_where(counted, x.square().mean(-1)).sqrt()
        values[f"residual_variance/{names[index + 1]}"] = _mean_where(counted, x.var(-1, correction=0))
    return values


def parameters_by_layer(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every parameter with the name of its layer.

    Raises:
        InputError: which list holds the model's blocks is not clear.
    """
    anatomy = find_anatomy(model)
    layer_names = _layer_names(len(anatomy.stack.layers))
    parts = anatomy.parameters()
    return [
        (layer_names[part] if isinstance(part := parts[name], int) else part, parameter)
        for name, parameter in anatomy.stack.model.named_parameters()
    ]


def _layer_names(num_layers: int) -> list[str]:
    """layer_01 .. layer_L: of one width, so that names sort by depth."""
    width = max(2, len(str(num_layers)))
    return [f"layer_{number:0{width}}" for number in range(1, num_layers + 1)]


def _mean_where(mask: Tensor, values: Tensor) -> Tensor:
    # not values[mask], whose size the host would have to wait for
    return torch.where(mask, values, 0.0).sum() / mask.sum()
