"""Building a placed model out of the tensors of another, each norm's by the place where it stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mixln.models.placed import PlacedPreTrainedModel, mark_as_loaded
from mixln.models.stack import PlacedStack
from mixln.placement import PlacedBlock, PlacementError, StackPlan


def has_adapters(model: nn.Module) -> bool:
    """Whether PEFT has put adapters into a model."""
    return any(type(module).__module__.startswith("peft.") for module in model.modules())


def norm_sources(before: StackPlan, after: StackPlan, target: PlacedPreTrainedModel) -> dict[str, str]:
    """Return, for every norm of the target, the name that the norm in its place has in the model as it is, or "".

    A name alone does not say where a norm stands: `post_attention_layernorm` is the feed-forward's N_in in Pre-LN and
    the attention's N_out in Post-LN. And a norm of another kind is another norm, whatever stood there.
    """
    found: dict[str, str] = {}
    blocks = [(name, module) for name, module in target.named_modules() if isinstance(module, PlacedBlock)]
    for (name, block), old_plan, new_plan in zip(blocks, before.blocks, after.blocks, strict=True):
        old = {
            (sublayer, part): (attribute, norm) for sublayer, part, attribute, norm in block.norm_attributes(old_plan)
        }
        for sublayer, part, attribute, norm in block.norm_attributes(new_plan):
            same = old.get((sublayer, part))
            found[f"{name}.{attribute}"] = f"{name}.{same[0]}" if same is not None and same[1] == norm else ""
        heads, old_heads = new_plan.attention.qkv_norm, old_plan.attention.qkv_norm
        if heads is not None and (old_heads is None or replace(old_heads, projections=heads.projections) != heads):
            attention = f"{name}.{getattr(block, 'attention_name', '')}"
            found |= dict.fromkeys((f"{attention}.{letter}_norm" for letter in "qkv"), "")
    for module_name, module in target.named_modules():
        if isinstance(module, PlacedStack):
            prefix = f"{module_name}." if module_name else ""
            pairs = (
                (module.final_norm_name, before.final_norm, after.final_norm),
                (module.embedding_norm_name, before.embedding_norm, after.embedding_norm),
            )
            found |= {f"{prefix}{name}": "" for name, old_norm, new_norm in pairs if old_norm != new_norm}
    return found


def take_tensors(target: PlacedPreTrainedModel, model: PreTrainedModel, sources: dict[str, str]) -> list[nn.Module]:
    """Give a model on the meta device the tensors of another, and empty ones where it has none; return those modules.

    Raises:
        PlacementError: a matrix has no counterpart of its shape.
    """
    parameters, buffers = dict(model.named_parameters(remove_duplicate=False)), dict(model.named_buffers())
    example = next(model.parameters())
    fresh: list[nn.Module] = []
    for module_name, module in target.named_modules(remove_duplicate=False):
        old_name = sources.get(module_name, module_name)
        tables: Any = ((module._parameters, parameters), (module._buffers, buffers))
        for tensors, known in tables:
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                source = known.get(f"{old_name}.{name}" if old_name else "")
                if source is not None and source.shape == tensor.shape:
                    tensors[name] = source
                    mark_as_loaded(source)
                    continue
                if tensor.ndim > 1:
                    raise PlacementError(f"{module_name}.{name} of shape {tuple(tensor.shape)} is not in the model")
                empty = torch.empty_like(tensor, device=example.device, dtype=example.dtype)
                tensors[name] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
                fresh.append(module)
    return fresh
