"""timm's `VisionTransformer` under a placement, and weights that go both ways between it and this library's ViT.

timm_block_fn   blocks for timm's own models, in anybody's script
from_timm       timm's model as a MixLNViTForImageClassification, with equal logits
to_timm         and back
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixln.errors import InputError
from mixln.models.architectures.vit import MixLNViTConfig, MixLNViTForImageClassification
from mixln.placement import Placement, PlacementError, StackPlan
from mixln.placement.plan import SUBLAYERS

TOLERANCE = 1e-5
"""Largest difference of logits in float32, relative to the largest logit."""

_ACTIVATIONS = {
    "gelu": "GELU",
    "gelu_pytorch_tanh": "GELUTanh",
    "quick_gelu": "QuickGELU",
    "relu": "ReLU",
    "silu": "SiLU",
}
"""What transformers calls an activation, and the class of torch or timm."""


def timm_block_fn(placement: str, depth: int) -> Any:
    """Return what timm's `VisionTransformer` takes as `block_fn`, so that its norms stand where a placement says.

    timm builds and initialises everything else, as its other options say; matrices for which the scheme has a rule
    (`deepnorm`) are drawn by it afterwards.

    Args:
        placement: text form, as `mix(alpha=0.25)`; the parts of it around the blocks must be timm's own.
        depth: the number of blocks of the model that is going to be built.

    Raises:
        PlacementError: there is no such placement, or it changes something outside of the blocks, which `block_fn` does
            not reach.
        InputError: timm is not installed, or older than 1.0.23, which does not tell a block its position.

    Examples:
        >>> block_fn = timm_block_fn("mix(alpha=0.25)", depth=12)
        >>> model = timm.create_model("vit_tiny_patch16_224", block_fn=block_fn)
    """
    plan = Placement.parse(placement).plan(depth)
    return _block_fn(plan, placement)


def _block_fn(plan: StackPlan, placement: str) -> Any:
    blocks = _import_timm("mixln.exchange.timm_blocks")
    outside = {
        "a factor on the embedding": plan.embedding_scale != 1,
        "a norm on the embedding": plan.embedding_norm is not None,
        "no final norm": plan.final_norm is None,
        "another kind of final norm": plan.final_norm is not None and plan.final_norm.kind != "architecture",
        "its own initialisation of every matrix": plan.init.distribution != "base" or plan.init.gain != 1,
    }
    if found := [what for what, is_there in outside.items() if is_there]:
        raise PlacementError(
            f"{placement} has {' and '.join(found)}, which lies outside of the blocks of timm's model: use this "
            "library's own ViT (MixLNViTConfig)"
        )
    return partial(blocks.PlacedTimmBlock, plan, placement)


def to_timm(model: MixLNViTForImageClassification) -> nn.Module:
    """Return a ViT of this library as timm's `VisionTransformer` with placed blocks; the given one stays as it is.

    Args:
        model: a classifier, with its class token or the mean of its patches.

    Returns:
        The model in the given one's mode, on its device and in its dtype. Under `pre` its weights have timm's own names
        and open in timm's models without this library.

    Raises:
        InputError: timm is missing; or it is another kind of model, has an activation that timm lacks, or the logits
            differ.
        PlacementError: as `timm_block_fn`.
    """
    if not isinstance(model, MixLNViTForImageClassification):
        raise InputError(f"{type(model).__name__} is no MixLNViTForImageClassification: timm's ViT has its head")
    config: Any = model.config
    timm = _import_timm("timm.models.vision_transformer")
    activation = _ACTIVATIONS.get(config.hidden_act)
    if activation is None:
        raise InputError(f"timm has no activation like {config.hidden_act}. Known: {', '.join(_ACTIVATIONS)}")
    found = timm.VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.num_channels,
        num_classes=config.num_labels,
        global_pool="token" if config.pooling == "class_token" else "avg",
        fc_norm=False,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        # half a channel more, which rounding down takes off again
        mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,
        qkv_bias=config.qkv_bias,
        init_values=config.layer_scale_init_value,
        pos_drop_rate=float(config.hidden_dropout_prob),
        proj_drop_rate=float(config.hidden_dropout_prob),
        attn_drop_rate=float(config.attention_probs_dropout_prob),
        drop_path_rate=float(config.drop_path_rate),
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
        act_layer=_activation_class(activation),
        block_fn=_block_fn(config.stack_plan, config.placement),
    ).to(device=model.device, dtype=model.dtype)
    weights = dict(model.state_dict())
    state = {theirs: torch.cat([weights.pop(name) for name in ours]) for ours, theirs in _names(model, found)}
    _require_all(weights, set(found.state_dict()) - set(state))
    found.load_state_dict(state)
    _check_logits(model, found)
    return found.train(model.training)


def from_timm(model: nn.Module) -> MixLNViTForImageClassification:
    """Return timm's `VisionTransformer` as this library's ViT, of timm's own blocks or of those of `timm_block_fn`.

    Args:
        model: with a class token and learned positions, whose head reads the class token, or the mean of the patches
            behind the final norm (`global_pool="avg", fc_norm=False`).

    Returns:
        The model in the given one's mode, on its device and in its dtype; the given one stays as it is.

    Raises:
        InputError: timm is missing; or the model has a part that this library's ViT lacks; or the logits differ.
    """
    timm = _import_timm("timm.models.vision_transformer")
    given: Any = model
    if type(given) is not timm.VisionTransformer:
        raise InputError(f"{type(given).__name__} is no VisionTransformer of timm: no other class of it is taken")
    lacking = {
        "no class token": given.cls_token is None,
        "register tokens": given.num_reg_tokens > 0,
        "no learned positions, or none of the class token": given.pos_embed is None or given.no_embed_class,
        "a norm in front of the blocks": not isinstance(given.norm_pre, nn.Identity),
        "a norm on the patches": not isinstance(given.patch_embed.norm, nn.Identity),
        "dropped patches": not isinstance(given.patch_drop, nn.Identity),
        "a norm behind the pooling, or no final norm": not isinstance(given.norm, nn.LayerNorm),
        f"a head that reads {given.global_pool!r}": given.global_pool not in ("token", "avg"),
        "a mean over the class token too": given.global_pool == "avg" and given.pool_include_prefix,
        "no classes": not isinstance(given.head, nn.Linear),
        "dropout before the head": given.head_drop.p > 0,
    }
    if found := [what for what, is_there in lacking.items() if is_there]:
        raise InputError(f"this VisionTransformer has {', '.join(found)}, which this library's ViT has not")
    placed = MixLNViTForImageClassification(_config_of(given))
    parameter = next(given.parameters())
    nn.Module.to(placed, device=parameter.device, dtype=parameter.dtype)
    weights = dict(given.state_dict())
    state: dict[str, Tensor] = {}
    for ours, theirs in _names(placed, given):
        if theirs in weights:
            state |= dict(zip(ours, weights.pop(theirs).chunk(len(ours)), strict=True))
    _require_all(weights, set(placed.state_dict()) - set(state))
    placed.load_state_dict(state)
    _check_logits(given, placed)
    return placed.train(given.training)


def _config_of(given: Any) -> MixLNViTConfig:
    placement = _placement_of(given)
    first, last = given.blocks[0], given.blocks[-1]
    attention = first.attn
    activations = {name: ours for ours, name in _ACTIVATIONS.items()}
    activation = type(first.mlp.act).__name__
    if activation not in activations:
        raise InputError(f"this library's ViT has no activation like {activation}. Known: {', '.join(activations)}")
    size, patch = (
        tuple(one) if one[0] != one[1] else one[0] for one in (given.patch_embed.img_size, given.patch_embed.patch_size)
    )
    build: Any = MixLNViTConfig
    return build(
        placement=placement,
        hidden_size=given.embed_dim,
        num_hidden_layers=len(given.blocks),
        num_attention_heads=attention.num_heads,
        intermediate_size=first.mlp.fc1.out_features,
        hidden_act=activations[activation],
        hidden_dropout_prob=attention.proj_drop.p,
        attention_probs_dropout_prob=attention.attn_drop.p,
        layer_norm_eps=given.norm.eps,
        image_size=size,
        patch_size=patch,
        num_channels=given.patch_embed.proj.in_channels,
        qkv_bias=attention.qkv.bias is not None,
        num_labels=given.num_classes,
        pooling="class_token" if given.global_pool == "token" else "mean",
        drop_path_rate=float(getattr(last.drop_path1, "drop_prob", 0.0)),
        layer_scale_init_value=getattr(last.ls1, "init_values", None),
    )


def _placement_of(given: Any) -> str:
    timm = _import_timm("timm.models.vision_transformer")
    kinds = {type(block) for block in given.blocks}
    if kinds == {timm.Block}:
        normed = not isinstance(given.blocks[0].attn.q_norm, nn.Identity)
        return "pre+qk_norm" if normed else "pre"
    blocks = _import_timm("mixln.exchange.timm_blocks")
    texts = {getattr(block, "placement", None) for block in given.blocks}
    if kinds != {blocks.PlacedTimmBlock} or len(texts) != 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(f"the blocks of this VisionTransformer are of {names}: give timm's own, or timm_block_fn's")
    text = str(texts.pop())
    if tuple(block.plan for block in given.blocks) != Placement.parse(text).plan(len(given.blocks)).blocks:
        raise InputError(f"blocks were taken out of this VisionTransformer, or others put in: it is no longer {text}")
    return text


def _names(ours: MixLNViTForImageClassification, theirs: Any) -> Iterator[tuple[list[str], str]]:
    """Yield the names of each parameter: ours, which are several side by side in query, key and value; and timm's."""
    stack, embeddings = "vit.", "vit.embeddings."
    yield [f"{embeddings}cls_token"], "cls_token"
    yield [f"{embeddings}position_embeddings"], "pos_embed"
    pairs = [(f"{embeddings}patch_embeddings.projection", "patch_embed.proj")]
    pairs += [(f"{stack}layernorm", "norm"), ("classifier", "head")]
    layers: Any = ours.get_submodule("vit.layers")
    for index, (own, other) in enumerate(zip(layers, theirs.blocks, strict=True)):
        here, there = f"{stack}layers.{index}", f"blocks.{index}"
        for ending in ("weight", "bias"):
            if f"attn.qkv.{ending}" in dict(other.named_parameters()):
                yield [f"{here}.attention.{letter}_proj.{ending}" for letter in "qkv"], f"{there}.attn.qkv.{ending}"
        pairs += [(f"{here}.attention.o_proj", f"{there}.attn.proj")]
        pairs += [(f"{here}.attention.{letter}_norm", f"{there}.attn.{letter}_norm") for letter in "qk"]
        pairs += [(f"{here}.mlp.{name}", f"{there}.mlp.{name}") for name in ("fc1", "fc2")]
        their_parts = getattr(other, "part_names", {"attention": _own_parts(1), "feed_forward": _own_parts(2)})
        for sublayer in SUBLAYERS:
            parts = own.part_names[sublayer]
            pairs += [
                (f"{here}.{name}", f"{there}.{their_parts[sublayer][part]}")
                for part, name in parts.items()
                if part in their_parts[sublayer]
            ]
            pairs += [(f"{here}.{sublayer}_residual", f"{there}.{sublayer}_residual")]
    modules = dict(ours.named_modules())
    # a gate is of both sublayers
    for own_name, other_name in dict.fromkeys(pairs):
        for name, _ in modules[own_name].named_parameters(recurse=False) if own_name in modules else ():
            yield [f"{own_name}.{name}"], f"{other_name}.{name}"


def _own_parts(number: int) -> dict[str, str]:
    return {"input_norm": f"norm{number}", "layer_scale": f"ls{number}"}


def _require_all(unread: Any, unset: set[str]) -> None:
    if unread or unset:
        names = ", ".join(sorted([*unread, *unset])[:3])
        raise InputError(f"there is no counterpart of {names}, so the model cannot be taken over exactly")


@torch.no_grad()
def _check_logits(given: Any, made: nn.Module) -> None:
    """Make sure that both give the same logits, in evaluation mode, of two random images."""
    parameter = next(made.parameters())
    if torch.finfo(parameter.dtype).eps > torch.finfo(torch.float32).eps:
        return  # rounded elsewhere
    config: Any = next(model.config for model in (given, made) if isinstance(model, MixLNViTForImageClassification))
    size = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size,) * 2
    images = torch.randn(2, config.num_channels, *size, generator=torch.Generator().manual_seed(0)).to(parameter)
    found: list[Tensor] = []
    for model in (given, made):
        training = model.training
        output = model.eval()(images)
        model.train(training)
        found.append(output if isinstance(output, Tensor) else output.logits)
    difference, largest = (found[0] - found[1]).abs().max().item(), found[0].abs().max().item()
    if not difference <= TOLERANCE * max(largest, 1.0):
        raise InputError(
            f"the logits of both models differ by {difference:.2g} (of up to {largest:.3g}): one of them has a part "
            "that the other lacks"
        )


def _activation_class(name: str) -> type[nn.Module]:
    return getattr(nn, name, None) or getattr(_import_timm("timm.layers"), name)


def _import_timm(module: str) -> Any:
    """Return a module that needs timm.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"models of timm need a package that cannot be imported ({error}). Install it: pip install 'mixln[vision]'"
        ) from error
