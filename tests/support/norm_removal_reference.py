"""Llama and GPT-2 with frozen norms, literally: N(x) = gamma * (x - mean(x)) / sigma + beta, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from models_reference import rotate
from torch import Tensor
from torch.nn import functional as F

ORDINARY, FIRST_POSITION, END_OF_TEXT = range(3)
Scales = Mapping[tuple[str, int | None], Tensor]
"""By (path, layer), sigma of the three classes."""


def classes_of(row: list[int], end_of_text: int) -> list[int]:
    """The class of every token of one document."""
    found = [END_OF_TEXT if token == end_of_text else ORDINARY for token in row]
    return [FIRST_POSITION, *found[1:]]


def frozen_norm(x: Tensor, w: Mapping[str, Tensor], name: str, sigma: Tensor, classes: list[int]) -> Tensor:
    """x: (sequence, hidden). LayerNorm where there is a bias, RMSNorm where there is none."""
    rows = []
    for token, own_class in zip(x, classes, strict=True):
        bias = w.get(f"{name}.bias")
        centered = token if bias is None else token - token.mean()
        row = w[f"{name}.weight"] * centered / sigma[own_class]
        rows.append(row if bias is None else row + bias)
    return torch.stack(rows)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over (heads, sequence, size), grouped queries; the heads side by side."""
    k, v = (part.repeat_interleave(q.shape[0] // part.shape[0], dim=0) for part in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(0, 1).flatten(1)


def heads(x: Tensor, size: int) -> Tensor:
    return x.unflatten(-1, (-1, size)).transpose(0, 1)


def llama_logits(w: Mapping[str, Tensor], row: list[int], scales: Scales, gains: list[float], end: int) -> Tensor:
    """(sequence, vocabulary), of one document."""
    classes, x = classes_of(row, end), w["model.embed_tokens.weight"][row]
    for layer, gain in enumerate(gains):
        name = f"model.layers.{layer}"

        def linear(x: Tensor, part: str, name: str = name) -> Tensor:
            return F.linear(x, w[f"{name}.{part}.weight"], w.get(f"{name}.{part}.bias"))

        n_qk, n_v = (
            gain * frozen_norm(x, w, f"{name}.input_layernorm", scales[path, layer], classes)
            for path in ("query_key", "value")
        )
        q, k = (rotate(heads(linear(n_qk, f"self_attn.{one}_proj"), 8), 10_000.0) for one in "qk")
        x = x + linear(attend(q, k, heads(linear(n_v, "self_attn.v_proj"), 8)), "self_attn.o_proj")
        n = gain * frozen_norm(x, w, f"{name}.post_attention_layernorm", scales["feed_forward", layer], classes)
        x = x + linear(F.silu(linear(n, "mlp.gate_proj")) * linear(n, "mlp.up_proj"), "mlp.down_proj")
    return frozen_norm(x, w, "model.norm", scales["final", None], classes) @ w["lm_head.weight"].T


def gpt2_logits(w: Mapping[str, Tensor], row: list[int], scales: Scales, gains: list[float], end: int) -> Tensor:
    """(sequence, vocabulary), of one document."""
    classes, x = classes_of(row, end), w["transformer.wte.weight"][row] + w["transformer.wpe.weight"][: len(row)]
    for layer, gain in enumerate(gains):
        name = f"transformer.h.{layer}"

        def linear(x: Tensor, part: str, name: str = name) -> Tensor:
            return x @ w[f"{name}.{part}.weight"] + w[f"{name}.{part}.bias"]

        n_qk, n_v = (
            gain * frozen_norm(x, w, f"{name}.ln_1", scales[path, layer], classes) for path in ("query_key", "value")
        )
        q, k, _ = linear(n_qk, "attn.c_attn").chunk(3, -1)
        _, _, v = linear(n_v, "attn.c_attn").chunk(3, -1)
        x = x + linear(attend(heads(q, 8), heads(k, 8), heads(v, 8)), "attn.c_proj")
        n = gain * frozen_norm(x, w, f"{name}.ln_2", scales["feed_forward", layer], classes)
        x = x + linear(F.gelu(linear(n, "mlp.c_fc"), approximate="tanh"), "mlp.c_proj")
    return frozen_norm(x, w, "transformer.ln_f", scales["final", None], classes) @ w["lm_head.weight"].T


LITERAL = {"llama": llama_logits, "gpt2": gpt2_logits}
