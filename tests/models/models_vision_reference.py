"""A whole ViT in plain tensor code, whose blocks follow the equations of `models_reference`; nothing is of mixln."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from models_reference import BLOCKS, CASES, Parts
from torch import Tensor

NORM_NAMES = {"input_layernorm": "layernorm_before"}
"""What ViT calls norms otherwise; the first of the feed-forward is `layernorm_after` wherever it stands alone."""


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return gain * centered / torch.sqrt((centered * centered).mean(-1, keepdim=True) + eps) + bias


def norm_named(name: str, x: Tensor, w: Mapping[str, Tensor], eps: float, groups: int = 1) -> Tensor:
    """The norm whose parameters have this name: LayerNorm over groups of channels, or a pointwise kind."""
    gain, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    if f"{name}.shift" in w:
        return torch.erf(x * w[f"{name}.alpha"] + w[f"{name}.shift"]) * gain + bias
    if f"{name}.alpha" in w:
        return torch.tanh(x * w[f"{name}.alpha"]) * gain + bias
    parts = zip(x.chunk(groups, -1), gain.chunk(groups), bias.chunk(groups), strict=True)
    return torch.cat([layer_norm(*part, eps) for part in parts], dim=-1)


def attend(x: Tensor, w: Mapping[str, Tensor], heads: int, eps: float) -> Tensor:
    """Softmax attention of all tokens to all."""

    def project(letter: str) -> Tensor:
        states = x @ w[f"attention.{letter}_proj.weight"].T + w[f"attention.{letter}_proj.bias"]
        norm, size = f"attention.{letter}_norm", states.shape[-1] // heads
        if f"{norm}.weight" in w and len(w[f"{norm}.weight"]) > size:
            states = norm_named(norm, states, w, eps)
        states = states.unflatten(-1, (heads, size))
        if f"{norm}.weight" in w and len(w[f"{norm}.weight"]) == size:
            states = norm_named(norm, states, w, eps)
        return states.transpose(1, 2)

    q, k, v = (project(letter) for letter in "qkv")
    mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2) @ w["attention.o_proj.weight"].T + w["attention.o_proj.bias"]


def gelu_mlp(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    inner = x @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
    return (inner * (1 + torch.erf(inner / math.sqrt(2))) / 2) @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]


def vit_logits(
    weights: Mapping[str, Tensor],
    images: Tensor,
    text: str,
    *,
    layers: int,
    heads: int,
    patch: int,
    eps: float = 1e-12,
    embedding_factor: float = 1.0,
    mean: bool = False,
) -> Tensor:
    """Logits of a whole ViT whose blocks follow the reference of `text` (a key of CASES)."""
    scheme, options = CASES.get(text, (text, {}))
    kernel = weights["vit.embeddings.patch_embeddings.projection.weight"]
    rows, columns = images.shape[-2] // patch, images.shape[-1] // patch
    tokens = [weights["vit.embeddings.cls_token"][0].expand(len(images), 1, -1)]
    for row in range(rows):
        for column in range(columns):
            part = images[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(torch.einsum("bcyx,dcyx->bd", part, kernel)[:, None])
    x = torch.cat((tokens[0], torch.cat(tokens[1:], 1) + weights["vit.embeddings.patch_embeddings.projection.bias"]), 1)
    x = (x + weights["vit.embeddings.position_embeddings"]) * embedding_factor
    if "vit.embeddings.embedding_norm.weight" in weights:
        x = norm_named("vit.embeddings.embedding_norm", x, weights, eps)
    for position in range(layers):
        prefix = f"vit.layers.{position}."
        w = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}

        def norm(name: str, h: Tensor, w: Mapping[str, Tensor] = w, **options: int) -> Tensor:
            if f"{name}.weight" not in w:
                name = NORM_NAMES.get(name, "layernorm_after")
            return norm_named(name, h, w, eps, **options)

        parts = Parts(
            attention=lambda h, w=w: w.get("attention_layer_scale.gamma", 1.0) * attend(h, w, heads, eps),
            ffn=lambda h, w=w: w.get("feed_forward_layer_scale.gamma", 1.0) * gelu_mlp(h, w),
            norm=norm,
            weights=w,
        )
        x = BLOCKS[scheme](x, position + 1, layers, parts, **options)
    if "vit.layernorm.weight" in weights:
        x = norm_named("vit.layernorm", x, weights, eps)
    pooled = x[:, 1:].mean(1) if mean else x[:, 0]
    return pooled @ weights["classifier.weight"].T + weights["classifier.bias"]
