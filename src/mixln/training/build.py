"""From a recipe to its model, and to the optimiser of any."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mixln.models import PlacedPreTrainedModel
from mixln.training.config import Recipe, model_config
from mixln.training.distributed import mesh_of


def build_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, device: torch.device | str = "cpu"
) -> PlacedPreTrainedModel:
    """Return the recipe's model with its initial weights, which depend on (seed, parameter name) alone.

    Raises:
        InputError: the model's sizes do not fit together.
    """
    return materialize(model_without_weights(recipe, tokenizer), recipe.seed, device)


def model_without_weights(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PlacedPreTrainedModel:
    """Return the recipe's model on the meta device.

    Raises:
        InputError: the model's sizes do not fit together.
    """
    bos, eos = (token if isinstance(token, int) else None for token in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    config = model_config(recipe, len(tokenizer), bos, eos)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert isinstance(model, PlacedPreTrainedModel)
    return model


def materialize(model: PlacedPreTrainedModel, seed: int, device: torch.device | str) -> PlacedPreTrainedModel:
    """Give a model on the meta device its memory and initial weights; of a sharded one, this process's part."""
    model.to_empty(device=device)
    model.tie_weights()
    model.initialize(seed)
    model.train()
    return model


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return Adam or AdamW; weight decay, if any, applies to matrices only."""
    settings = recipe.optimizer
    # the fused kernel wants all tensors of a group distributed in the same way
    groups: dict[tuple[bool, DeviceMesh | None], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim >= 2, mesh_of(parameter)), []).append(parameter)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return kind(
        [
            {"params": parameters, "weight_decay": settings.weight_decay if is_matrix else 0.0}
            for (is_matrix, _), parameters in groups.items()
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
