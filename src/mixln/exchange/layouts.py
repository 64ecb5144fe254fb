"""Layouts of transformers' own classes: which placement each of them computes, and how a model's weights go into it.

The first is always the architecture's own. The others share Llama's internals (RMSNorm, SwiGLU, rotary positions in
halves) and differ from it in where their norms stand; each is a short registered function.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    LlamaConfig,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from mixln.exchange.fold import Folded
from mixln.models.decoder import PlacedForCausalLM
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.transformers_internals import stock_base
from mixln.placement import Placement


class LayoutError(ValueError):
    """A layout with the right placement does not fit the model; the message is the reason."""


LayoutBuilder = Callable[[Any, Folded], PreTrainedConfig]
"""Changes the folded weights to the layout's, and returns its config. Raises LayoutError."""


@dataclass(frozen=True)
class StockLayout:
    """A layout of transformers.

    Attributes:
        config_class: of transformers.
        placement: what its classes compute.
        build: puts a model into it.
    """

    config_class: type[PreTrainedConfig]
    placement: str
    build: LayoutBuilder

    def has_placement_of(self, folded: Folded) -> bool:
        """Whether the layout's classes execute just what is left to be executed."""
        return folded.plan.same_function_as(Placement.parse(self.placement).plan(len(folded.plan.blocks)))

    def model_class(self, placed: type[PlacedPreTrainedModel]) -> type[PreTrainedModel]:
        """Return transformers' class for one of this library: with the same head, or without."""
        stock = stock_base(placed)
        assert issubclass(stock, PreTrainedModel)
        if stock.config_class is self.config_class:
            return stock
        auto: Any = AutoModelForCausalLM if issubclass(placed, PlacedForCausalLM) else AutoModel
        return auto._model_mapping[self.config_class]


_LAYOUTS: list[StockLayout] = []


def own_layout(config: PlacedConfig) -> StockLayout:
    """Return the layout of the classes that a model's architecture has in transformers."""
    return StockLayout(_stock_config_class(config), config.stock_placement, _own)


def layouts_for(config: PlacedConfig) -> Iterator[StockLayout]:
    """Yield the layouts that a model might fit, its own architecture's first."""
    yield own_layout(config)
    for layout in _LAYOUTS:
        if layout.config_class is not _stock_config_class(config):
            yield layout


def register_layout(config_class: type[PreTrainedConfig], placement: str) -> Callable[[LayoutBuilder], LayoutBuilder]:
    """Register a function as the builder of a layout with Llama's internals; used as a decorator."""

    def register(build: LayoutBuilder) -> LayoutBuilder:
        _LAYOUTS.append(StockLayout(config_class, placement, build))
        return build

    return register


def _stock_config_class(config: PlacedConfig) -> type[PreTrainedConfig]:
    return stock_base(type(config))


def _own(config: PlacedConfig, folded: Folded) -> PreTrainedConfig:
    if config.beyond_stock is not None:
        raise LayoutError(config.beyond_stock)
    build: Any = _stock_config_class(config)
    # PreTrainedConfig's own: a PlacedConfig's has marks that stock classes stumble over
    found = PreTrainedConfig.to_dict(config)
    ours = {field.name for field in fields(config)} - {field.name for field in fields(build)}
    # auto_map: of a folder that brings this library's code along
    left_out = {*ours, "model_type", "architectures", "transformers_version", "auto_map"}
    values: dict[str, Any] = {name: value for name, value in found.items() if name not in left_out}
    if "tie_word_embeddings" in values:
        values["tie_word_embeddings"] = folded.tied
    return build(**values)


_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "olmo2")
"""Model types with Llama's internals, but for biases and windows of attention, which are asked for one by one."""

_SAME_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "rope_parameters", "attention_dropout"),
)


def _llama_fields(config: Any, folded: Folded) -> dict[str, Any]:
    """Return the fields that all the layouts below share.

    Raises:
        LayoutError: the model's internals are not Llama's.
    """
    own = _stock_config_class(config)
    if own.model_type not in _LLAMA_LIKE:
        raise LayoutError(f"the norms, attention and feed-forward of {own.model_type} are not the ones of Llama")
    if has_window(config):
        raise LayoutError("the model attends within a sliding window")
    if any(name.endswith(".bias") and ".mlp." in name for name in folded.weights):
        raise LayoutError("the model's feed-forward has biases")
    found = {name: copy.deepcopy(getattr(config, name)) for name in _SAME_FIELDS}
    return found | {"tie_word_embeddings": folded.tied, "head_dim": _head_dim(config), "dtype": config.dtype}


def has_window(config: Any) -> bool:
    """Return whether any layer of a model attends to less than all that comes before a token."""
    types = getattr(config, "layer_types", None)
    if types is None:
        return getattr(config, "sliding_window", None) is not None
    return any(one != "full_attention" for one in types)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_biases(folded: Folded, projections: str = "qkvo") -> bool:
    """Return whether projections of the attention have biases; if so, give all of these one, 0 where there was none.

    Raises:
        LayoutError: another projection has one.
    """
    names = [name for name in folded.weights if name.endswith("_proj.bias")]
    for name in names:
        if name.split(".")[-2][0] not in projections:
            raise LayoutError(f"it has no place for biases of the model, such as {name}")
    if names:
        for name, weight in list(folded.weights.items()):
            if name.endswith(tuple(f".self_attn.{letter}_proj.weight" for letter in projections)):
                bias = f"{name.removesuffix('weight')}bias"
                folded.weights.setdefault(bias, weight.new_zeros(weight.shape[0]))
    return bool(names)


@register_layout(LlamaConfig, "pre")
def _llama(config: Any, folded: Folded) -> PreTrainedConfig:
    return LlamaConfig(**_llama_fields(config, folded), attention_bias=_add_biases(folded))


@register_layout(Qwen3Config, "pre+qk_norm")
def _qwen3(config: Any, folded: Folded) -> PreTrainedConfig:
    return Qwen3Config(**_llama_fields(config, folded), attention_bias=_add_biases(folded))


@register_layout(Olmo2Config, "reordered+qk_norm(per_head=false)")
def _olmo2(config: Any, folded: Folded) -> PreTrainedConfig:
    return Olmo2Config(**_llama_fields(config, folded), attention_bias=_add_biases(folded))


@register_layout(Exaone4Config, "reordered+qk_norm")
def _exaone4(config: Any, folded: Folded) -> PreTrainedConfig:
    values = _llama_fields(config, folded)
    _add_biases(folded, projections="")
    # without a window every layer attends to everything and has rotary positions
    return Exaone4Config(**values, sliding_window=None, layer_types=["full_attention"] * config.num_hidden_layers)


@register_layout(Glm4Config, "sandwich")
def _glm4(config: Any, folded: Folded) -> PreTrainedConfig:
    """GLM-4: other names, one matrix for gate and up, and rotary positions that turn neighbours instead of halves.

    Channel i of the first half of a head moves to 2i and its partner in the second half to 2i + 1, in q and k alike:
    scores are sums over the channels of a head, whatever their order.
    """
    values: dict[str, Any] = _llama_fields(config, folded)
    # as a field too: older releases of transformers write the field's default of 0.5 over the entry
    values["partial_rotary_factor"] = 1.0
    values["rope_parameters"] = {**values["rope_parameters"], "partial_rotary_factor": 1.0}
    values["attention_bias"] = _add_biases(folded, projections="qkv")
    for name in [name for name in folded.weights if ".self_attn.q_proj." in name or ".self_attn.k_proj." in name]:
        halves = folded.weights[name].unflatten(0, (-1, 2, values["head_dim"] // 2))
        folded.weights[name] = halves.transpose(1, 2).flatten(0, 2)
    for name in [name for name in folded.weights if name.endswith(".mlp.gate_proj.weight")]:
        gate, up = folded.weights.pop(name), folded.weights.pop(name.replace("gate_proj", "up_proj"))
        folded.weights[name.replace("gate_proj", "gate_up_proj")] = torch.cat((gate, up))
    folded.weights = {
        re.sub("|".join(_GLM4_NORMS), lambda found: _GLM4_NORMS[found[0]], name): tensor
        for name, tensor in folded.weights.items()
    }
    return Glm4Config(**values)


_GLM4_NORMS = {
    "post_attention_layernorm": "post_self_attn_layernorm",
    "pre_feedforward_layernorm": "post_attention_layernorm",
    "post_feedforward_layernorm": "post_mlp_layernorm",
}


@register_layout(Gemma2Config, "sandwich")
def _gemma2(config: Any, folded: Folded) -> PreTrainedConfig:
    return Gemma2Config(**_gemma_fields(config, folded), attn_logit_softcapping=None)


@register_layout(Gemma3TextConfig, "sandwich+qk_norm")
def _gemma3(config: Any, folded: Folded) -> PreTrainedConfig:
    values: dict[str, Any] = _gemma_fields(config, folded)
    # the second is for layers with a window, of which there are none
    rotary: Any = {"full_attention": values["rope_parameters"], "sliding_attention": {"rope_type": "default"}}
    return Gemma3TextConfig(**values | {"rope_parameters": rotary})


def _gemma_fields(config: Any, folded: Folded) -> dict[str, Any]:
    """Gemma multiplies with 1 + w in its norms, and the embedding with sqrt(d), rounded to the weights' dtype."""
    values = _llama_fields(config, folded)
    values["hidden_activation"] = values.pop("hidden_act")
    values["attention_bias"] = _add_biases(folded)
    for name, tensor in folded.weights.items():
        if name.split(".")[-2].endswith("norm"):
            folded.weights[name] = (tensor.double() - 1).to(tensor.dtype)
    (name,) = [name for name in folded.weights if name.endswith("embed_tokens.weight")]
    rows = folded.weights[name]
    scale = torch.tensor(math.sqrt(config.hidden_size), dtype=rows.dtype).double()
    folded.weights[name] = (rows.double() / scale.to(rows.device)).to(rows.dtype)
    return values | {
        "query_pre_attn_scalar": values["head_dim"],
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "final_logit_softcapping": None,
        "tie_word_embeddings": False,
    }
