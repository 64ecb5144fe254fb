"""Norm-free models in TransformerLens, where every activation can be read and changed.

    x_0 = W_E[token] + W_pos[position];  x <- x + attention(x);  x <- x + feed_forward(x);  logits = x W_U + b_U

Nothing is folded or centred on the way, for there is no norm to fold: the residual stream there is the one here. The
weights are given TransformerLens's names and shapes once, from the roles of the matrices; what builds the model around
them depends on its version. `HookedTransformer` was removed in 4.0, whose own model is `TransformerBridge`.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mixln.errors import InputError
from mixln.exchange.export import precise_logits, random_tokens
from mixln.exchange.fold import Folded, fold
from mixln.exchange.layouts import has_window
from mixln.models.decoder import PlacedDecoderLayer
from mixln.models.graft import has_adapters
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.roles import role_matrices
from mixln.models.transformers_internals import Conv1D
from mixln.modes import evaluation_mode
from mixln.placement import Placement, Role, StackPlan
from mixln.placement.departures import departures

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",  # the same formula
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""What TransformerLens calls the activation functions that it has in every version."""

_LIMITS = ("clip_qkv", "attn_logit_softcapping", "final_logit_softcapping")
"""Fields of configs that clamp activations or logits, if they are not None."""

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit, that an export of float32 weights may have."""

_Weights = dict[tuple[Role, int | None], tuple[Tensor, Tensor | None]]
"""By role and block: the matrix, (in, out) or (rows, hidden), and its bias."""


def to_transformer_lens(
    model: PlacedPreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    context_length: int | None = None,
) -> Any:
    """Return a norm-free model as one of TransformerLens; the given one stays as it is.

    It computes the same logits (batch, sequence, vocabulary) up to rounding, in the same dtype and on the same device,
    without dropout. `run_with_cache`, `run_with_hooks` and TransformerLens's names of hooks and weights work.

    Args:
        model: a language model of this library under placement `none`, in any float dtype.
        tokenizer: to give the model strings, which are tokenised as this tokenizer does it: a beginning-of-text token
            comes first only if it puts one there. It is copied.
        context_length: most tokens that the result can read; None: as many as the model. TransformerLens keeps a mask
            of context_length ** 2 bytes in every layer.

    Returns:
        A `TransformerBridge`, with TransformerLens before 4.0 a `HookedTransformer`; its `normalization_type` is None.

    Raises:
        InputError: the model has norms, or another part that TransformerLens has no room for; or the logits of some
            random tokens differ; or TransformerLens is not installed.
    """
    _check_model(model)
    folded = fold(model)
    _check_plan(folded.plan, model.config)
    weights = _role_weights(model, folded)
    fields = _config_fields(model, weights, context_length)
    fields["default_prepend_bos"] = tokenizer is not None and _prepends_bos(tokenizer)
    state = _state(model, weights, fields)
    package = import_transformer_lens()
    major = int(importlib.metadata.version("transformer-lens").partition(".")[0])
    build = _hooked_transformer if major < 4 else _bridge
    hooked = build(package, fields, state, None if tokenizer is None else _own_copy(tokenizer))
    _check_logits(model, hooked)
    return hooked


def import_transformer_lens() -> Any:
    """Return the package.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        return importlib.import_module("transformer_lens")
    except ImportError as error:
        raise InputError(
            f"the export to TransformerLens needs a package that cannot be imported ({error}). Install it: "
            "pip install 'mixln[transformer-lens]'"
        ) from error


def _check_model(model: PlacedPreTrainedModel) -> None:
    if not isinstance(model, PlacedPreTrainedModel):
        raise InputError(
            f"{type(model).__name__} is not a model of this library. Open a norm-free checkpoint with "
            "AutoModelForCausalLM.from_pretrained after `import mixln`"
        )
    if has_adapters(model):
        raise InputError("the model has adapters: merge them first (merge_and_unload)")
    config: Any = model.config
    name = type(model).__name__
    if model.get_output_embeddings() is None:
        raise InputError(f"{name} has no head, and TransformerLens models have one: open it as a causal language model")
    if has_window(config):
        raise InputError(
            f"{name} attends within a sliding window, which not every version of TransformerLens has: only models "
            "whose layers all attend to everything can be exported"
        )
    for field in _LIMITS:
        if (limit := getattr(config, field, None)) is not None:
            raise InputError(
                f"{name} clamps what it computes ({field}={limit}), which not every version of TransformerLens does: "
                f"only models with {field}=None can be exported"
            )


def _check_logits(model: PlacedPreTrainedModel, hooked: Any) -> None:
    """Refuse a model that has a part which neither its config nor the roles of its matrices tell."""
    ids = random_tokens(model)[:, : hooked.cfg.n_ctx]
    with evaluation_mode(model):
        expected = precise_logits(model, ids)
    with torch.no_grad():
        found = hooked(ids.to(model.device)).double()
    difference, largest = (expected - found).abs().max().item(), expected.abs().max().item()
    # 32 roundings: a dtype with less precision than float32 shows only what is grossly wrong
    if not difference <= max(TOLERANCE, 32 * torch.finfo(model.dtype).eps) * largest:
        raise InputError(
            f"TransformerLens computes logits that are not those of the {type(model).__name__}: they differ by "
            f"{difference:.2g}, "
            f"and the largest is {largest:.3g}. The model has a part that is not exported: use it as it is"
        )


def _check_plan(plan: StackPlan, config: Any) -> None:
    norm_free = Placement.parse("none").plan(len(plan.blocks))
    if plan.same_function_as(norm_free):
        return
    found = "; ".join(departures(plan, norm_free))
    if plan.norms:
        raise InputError(
            f"placement {config.placement} has norms ({found}), and only models without norms are exported to "
            "TransformerLens, since their residual stream can be read directly: remove them first (mixln remove-norm)"
        )
    raise InputError(
        f"placement {config.placement} has parts that TransformerLens does not execute and that no weight can "
        f"replace ({found}): only models under placement none without them can be exported"
    )


def _role_weights(model: PlacedPreTrainedModel, folded: Folded) -> _Weights:
    found: _Weights = {}
    for matrix in role_matrices(model):
        module_name = matrix.name.rpartition(".")[0]
        weight, bias = folded.weights[matrix.name], folded.weights.get(f"{module_name}.bias")
        biases = {} if bias is None else matrix.parts(bias, dim=0)
        is_table = matrix.roles[0] in ("embedding", "position_embedding")
        as_it_is = is_table or isinstance(model.get_submodule(module_name), Conv1D)
        for role, part in matrix.parts(weight).items():
            found[role, matrix.block] = (part if as_it_is else part.T, biases.get(role))
    return found


def _config_fields(model: PlacedPreTrainedModel, weights: _Weights, context_length: int | None) -> dict[str, Any]:
    """Return the fields that the configs of all versions share."""
    config: Any = model.config
    assert isinstance(config, PlacedConfig)
    longest = config.max_position_embeddings
    if context_length is not None and not 1 <= context_length <= longest:
        raise InputError(f"context_length must be from 1 to {longest}, the model's own, not {context_length}")
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise InputError(
            f"the activation function {activation} is none that every version of TransformerLens has; those are {known}"
        )
    heads = config.num_attention_heads
    head_size = weights["query", 0][0].shape[1] // heads
    key_value_heads = weights["key", 0][0].shape[1] // head_size
    gated = ("gate", 0) in weights
    if gated and any(weights[role, 0][1] is not None for role in ("gate", "up", "down")):
        raise InputError(
            "the model's gated feed-forward has biases (mlp_bias), for which TransformerLens has no room: only models "
            "without them can be exported"
        )
    return {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "d_head": head_size,
        "n_heads": heads,
        "n_key_value_heads": None if key_value_heads == heads else key_value_heads,
        "d_mlp": weights["up", 0][0].shape[1],
        "gated_mlp": gated,
        "act_fn": _ACTIVATIONS[activation],
        "d_vocab": weights["embedding", None][0].shape[0],
        "d_vocab_out": weights["head", None][0].shape[1],
        "n_ctx": longest if context_length is None else context_length,
        "normalization_type": None,
        "init_weights": False,
        "dtype": model.dtype,
        "device": str(model.device),
        **({} if ("position_embedding", None) in weights else _rotary_fields(config)),
    }


def _rotary_fields(config: Any) -> dict[str, Any]:
    rotary: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    kind = rotary.get("rope_type", "default")
    if kind != "default" or rotary.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            f"the model's rotary positions are of another type ({rotary}): only plain ones over the whole head "
            "(rope_type default) can be exported to TransformerLens"
        )
    base = rotary["rope_theta"]
    if base != int(base):
        raise InputError(f"rope_theta is {base}: only models where it is a whole number fit into TransformerLens")
    return {"positional_embedding_type": "rotary", "rotary_base": int(base)}


def _state(model: PlacedPreTrainedModel, weights: _Weights, fields: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights under the names and in the shapes of `HookedTransformer`; missing biases are 0."""
    state = {"embed.W_E": weights["embedding", None][0]}
    if ("position_embedding", None) in weights:
        state["pos_embed.W_pos"] = weights["position_embedding", None][0][: fields["n_ctx"]]
    blocks = [module for module in model.modules() if isinstance(module, PlacedDecoderLayer)]
    for number, block in enumerate(blocks):
        attention: Any = block.get_submodule(block.attention_name)
        state |= _attention(weights, number, fields, attention.scaling)
        state |= _feed_forward(weights, number)
    matrix, bias = weights["head", None]
    return state | {"unembed.W_U": matrix, "unembed.b_U": _or_zeros(bias, matrix)}


def _attention(weights: _Weights, number: int, fields: dict[str, Any], scaling: float) -> dict[str, Tensor]:
    """Return W_Q, W_K and W_V (heads, hidden, head size), W_O (heads, head size, hidden) and their biases.

    TransformerLens divides scores by the square root of the head size; any other factor goes into the queries.
    """
    size, prefix, found = fields["d_head"], f"blocks.{number}.attn.", dict[str, Tensor]()
    grouped = "_" if fields["n_key_value_heads"] else ""
    names: tuple[tuple[Role, str, str], ...] = (("query", "", "Q"), ("key", grouped, "K"), ("value", grouped, "V"))
    factor = scaling * math.sqrt(size)
    for role, underscore, letter in names:
        matrix, bias = weights[role, number]
        per_head = matrix.unflatten(1, (-1, size)).transpose(0, 1)
        bias_per_head = _or_zeros(bias, matrix).unflatten(0, (-1, size))
        if role == "query" and not math.isclose(factor, 1.0):
            per_head, bias_per_head = per_head * factor, bias_per_head * factor
        found |= {f"{prefix}{underscore}W_{letter}": per_head, f"{prefix}{underscore}b_{letter}": bias_per_head}
    matrix, bias = weights["attention_output", number]
    return found | {f"{prefix}W_O": matrix.unflatten(0, (-1, size)), f"{prefix}b_O": _or_zeros(bias, matrix)}


def _feed_forward(weights: _Weights, number: int) -> dict[str, Tensor]:
    prefix, found = f"blocks.{number}.mlp.", dict[str, Tensor]()
    names: tuple[tuple[Role, str], ...] = (("gate", "gate"), ("up", "in"), ("down", "out"))
    gated = ("gate", number) in weights
    for role, name in names:
        if (role, number) not in weights:
            continue
        matrix, bias = weights[role, number]
        found[f"{prefix}W_{name}"] = matrix
        if not gated:
            found[f"{prefix}b_{name}"] = _or_zeros(bias, matrix)
    return found


def _or_zeros(bias: Tensor | None, matrix: Tensor) -> Tensor:
    return matrix.new_zeros(matrix.shape[1]) if bias is None else bias


def _hooked_transformer(
    package: Any, fields: dict[str, Any], state: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase | None
) -> Any:
    """Build the model of TransformerLens 3: it turns the halves of a head, as transformers does."""
    hooked = package.HookedTransformer(package.HookedTransformerConfig(**fields), tokenizer=tokenizer)
    missing, unexpected = hooked.load_state_dict(state, strict=False)
    # of its own: masks, angles, and in a gated feed-forward biases that start at 0
    own = (".mask", ".IGNORE", ".rotary_sin", ".rotary_cos", ".mlp.b_in", ".mlp.b_out")
    others = [*unexpected, *(name for name in missing if not name.endswith(own))]
    assert not others, f"HookedTransformer has other weights: {others}"
    return hooked.eval()


def _bridge(
    package: Any, fields: dict[str, Any], state: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase | None
) -> Any:
    """Build the model of TransformerLens 4, with the names of hooks and weights that `HookedTransformer` had.

    Its rotary positions turn neighbours. So channel i of the first half of a head moves to 2i and its partner in the
    second half to 2i + 1, in queries and keys alike: scores are sums over the channels of a head, whatever their order.
    """
    if "rotary_base" in fields:
        half = fields["d_head"] // 2
        turned = tuple(f".attn.{name}" for name in ("W_Q", "W_K", "_W_K", "b_Q", "b_K", "_b_K"))
        state = {
            name: tensor.unflatten(-1, (2, half)).transpose(-1, -2).flatten(-2) if name.endswith(turned) else tensor
            for name, tensor in state.items()
        }
    bridges = importlib.import_module("transformer_lens.model_bridge.sources.native")
    conversion = importlib.import_module("transformer_lens.utilities.tl_checkpoint_conversion")
    config = package.TransformerBridgeConfig(**fields)
    bridge = bridges.boot(config, tokenizer=tokenizer, device=fields["device"], dtype=fields["dtype"])
    bridge.load_state_dict(conversion.convert_tl_checkpoint(state, bridge.cfg), strict=True)
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    return bridge.eval()


def _prepends_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer.encode("a")
    return len(ids) > 1 and ids[0] == tokenizer.bos_token_id


def _own_copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy, to which TransformerLens adds tokens, and which it does not load anew from where it came from."""
    own = copy.deepcopy(tokenizer)
    own.init_kwargs = {**own.init_kwargs, "name_or_path": tokenizer.name_or_path, "add_bos_token": True}
    return own
