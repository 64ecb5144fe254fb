"""Tiny models of every registered architecture, and a stack written out around their own attention and feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from models_reference import BLOCKS, Parts
from models_tools import TINY, pixels, randomise_gains, token_ids
from torch import Tensor

import mixln
from mixln.models import ARCHITECTURES, PlacedConfig, PlacedPreTrainedModel, language_models
from mixln.placement import PlacedBlock

NAMES = list(ARCHITECTURES)
CAUSAL = list(language_models())
STOCK = {name: found.config_class.stock_placement for name, found in ARCHITECTURES.items()}
PLACEMENTS = [*mixln.schemes(), "mix(alpha=0.5)", "pre+qk_norm", "post+gpas", "pre+dyt", "lns+derf"]
PAIRS = [(name, text) for name in NAMES for text in dict.fromkeys([*PLACEMENTS, STOCK[name]])]
CAUSAL_PAIRS = [pair for pair in PAIRS if pair[0] in CAUSAL]

TINY_IMAGES: dict[str, Any] = {
    **{name: TINY[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")},
    "initializer_range": 0.15,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 5,
}


def inputs_of(name: str, rows: int = 2, **options: Any) -> Tensor:
    """Tokens or images, whichever an architecture reads; `options` are those of `token_ids` or `pixels`."""
    return (token_ids if ARCHITECTURES[name].is_causal else pixels)(rows, **options)


def tiny_architecture_config(name: str, placement: str, **changes: Any) -> PlacedConfig:
    config_class = ARCHITECTURES[name].config_class
    if not ARCHITECTURES[name].is_causal:
        return config_class(**(TINY_IMAGES | changes), placement=placement)
    fields = {**TINY, "pad_token_id": None, "tie_word_embeddings": False}
    if config_class.recipe_name("num_key_value_heads") is None:
        del fields["num_key_value_heads"]
    return config_class.from_recipe(**(fields | changes), placement=placement)


def tiny_architecture(name: str, placement: str, **changes: Any) -> PlacedPreTrainedModel:
    """A model whose every layer does something, with a random value in every norm, bias and other vector."""
    config = tiny_architecture_config(name, placement, **changes)
    model = ARCHITECTURES[name].auto_class.from_config(config, attn_implementation="sdpa")
    assert isinstance(model, PlacedPreTrainedModel)
    model.initialize(0)
    randomise_gains(model)
    return model.eval()


def stack_of(model: PlacedPreTrainedModel) -> tuple[Any, list[PlacedBlock]]:
    base: Any = model.base_model
    return base, [module for module in base.modules() if isinstance(module, PlacedBlock)]


def logits_written_out(model: PlacedPreTrainedModel, inputs: Tensor, text: str, **options: Any) -> Tensor:
    """Logits of a stack that follows the literal equations, around the architecture's own attention and feed-forward.

    Masks, positions and patches are written out too; attention and feed-forward are called as functions.
    """
    base, _ = stack_of(model)
    head = model.get_output_embeddings() or model.get_submodule("classifier")
    if inputs.is_floating_point():
        x = _through_blocks(model, _patches(base, inputs), {}, text, **options)
        return head(base.layernorm(x)[:, 0])
    x, context = _tokens(base, model.get_input_embeddings(), inputs)
    x = _through_blocks(model, x, context, text, **options)
    return head((base.ln_f if hasattr(base, "ln_f") else base.norm)(x))


def _patches(base: Any, images: Tensor) -> Tensor:
    """Every patch as a row of values times the kernel as a matrix, behind the learned tokens; then the positions."""
    own = base.embeddings
    kernel, size = own.patch_embeddings.projection.weight, own.patch_embeddings.projection.weight.shape[-1]
    rows = images.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    patches = rows @ kernel.flatten(1).T + own.patch_embeddings.projection.bias
    learned = [getattr(own, name) for name in ("cls_token", "distillation_token") if hasattr(own, name)]
    x = torch.cat((*(token.expand(len(images), -1, -1) for token in learned), patches), 1)
    x = (x + own.position_embeddings) * own.embedding_factor
    return own.embedding_norm(x) if hasattr(own, "embedding_norm") else x


def _tokens(base: Any, embedding: Any, ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
    length = ids.shape[1]
    positions = torch.arange(length)[None]
    x = embedding(ids) * base.embedding_factor
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
    return x, context


def _through_blocks(
    model: PlacedPreTrainedModel, x: Tensor, context: dict[str, Any], text: str, **options: Any
) -> Tensor:
    _, blocks = stack_of(model)
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
    return x


def _first(parts: Mapping[str, str], wanted: tuple[str, ...], otherwise: Mapping[str, str]) -> str:
    for part in wanted:
        if part in parts:
            return parts[part]
    return otherwise.get("input_norm", "")
