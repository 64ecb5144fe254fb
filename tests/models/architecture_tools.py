"""Tiny models of every registered architecture, and a stack written out around their own attention and feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from models_reference import BLOCKS, Parts
from models_tools import TINY, randomise_gains
from torch import Tensor
from transformers import AutoModelForCausalLM

import mixln
from mixln.models import ARCHITECTURES, PlacedConfig, PlacedPreTrainedModel
from mixln.placement import PlacedBlock

NAMES = list(ARCHITECTURES)
STOCK = {name: found.config_class.stock_placement for name, found in ARCHITECTURES.items()}
PLACEMENTS = [*mixln.schemes(), "mix(alpha=0.5)", "pre+qk_norm", "post+gpas", "pre+dyt", "lns+derf"]
PAIRS = [(name, text) for name in NAMES for text in dict.fromkeys([*PLACEMENTS, STOCK[name]])]


def tiny_architecture_config(name: str, placement: str, **changes: Any) -> PlacedConfig:
    config_class = ARCHITECTURES[name].config_class
    fields = {**TINY, "pad_token_id": None, "tie_word_embeddings": False}
    if config_class.recipe_name("num_key_value_heads") is None:
        del fields["num_key_value_heads"]
    return config_class.from_recipe(**(fields | changes), placement=placement)


def tiny_architecture(name: str, placement: str, **changes: Any) -> PlacedPreTrainedModel:
    """A model whose every layer does something, with a random value in every norm, bias and other vector."""
    config = tiny_architecture_config(name, placement, **changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert isinstance(model, PlacedPreTrainedModel)
    model.initialize(0)
    randomise_gains(model)
    return model.eval()


def stack_of(model: PlacedPreTrainedModel) -> tuple[Any, list[PlacedBlock]]:
    base: Any = model.base_model
    return base, [module for module in base.modules() if isinstance(module, PlacedBlock)]


def logits_written_out(model: PlacedPreTrainedModel, ids: Tensor, text: str, **options: Any) -> Tensor:
    """Logits of a stack that follows the literal equations, around the architecture's own attention and feed-forward.

    The causal mask and the positions are written out too; attention and feed-forward are called as functions.
    """
    base, blocks = stack_of(model)
    length = ids.shape[1]
    positions = torch.arange(length)[None]
    x = model.get_input_embeddings()(ids) * base.embedding_factor
    if hasattr(base, "wpe"):
        x = base.drop(x + base.wpe(positions))
    if hasattr(base, "embedding_norm"):
        x = base.embedding_norm(x)
    context: dict[str, Any] = {
        "attention_mask": torch.zeros(1, 1, length, length).masked_fill(
            torch.ones(length, length, dtype=torch.bool).triu(1), torch.finfo(torch.float32).min
        )
    }
    if hasattr(base, "rotary_emb"):
        context["position_embeddings"] = base.rotary_emb(x, positions)
    for depth, block in enumerate(blocks, start=1):
        attention, mlp = block.get_submodule(block.attention_name), block.get_submodule("mlp")  # pyright: ignore[reportArgumentType]
        names = {
            "input_layernorm": block.part_names["attention"].get("input_norm", ""),
            # the same name for the first norm of the feed-forward and for a norm behind the attention
            "post_attention_layernorm": _first(
                block.part_names["attention"], ("branch_norm", "output_norm"), block.part_names["feed_forward"]
            ),
            "pre_feedforward_layernorm": block.part_names["feed_forward"].get("input_norm", ""),
            "post_feedforward_layernorm": _first(block.part_names["feed_forward"], ("branch_norm", "output_norm"), {}),
        }
        parts = Parts(
            attention=lambda h, attention=attention: attention(hidden_states=h, **context)[0],
            ffn=mlp,
            norm=lambda name, h, block=block, names=names, **_: block.get_submodule(names[name])(h),
            weights=dict(block.named_parameters()),
        )
        x = BLOCKS[text](x, depth, len(blocks), parts, **options)
    final = base.ln_f if hasattr(base, "ln_f") else base.norm
    head = model.get_output_embeddings()
    assert head is not None
    return head(final(x))


def _first(parts: Mapping[str, str], wanted: tuple[str, ...], otherwise: Mapping[str, str]) -> str:
    for part in wanted:
        if part in parts:
            return parts[part]
    return otherwise.get("input_norm", "")
