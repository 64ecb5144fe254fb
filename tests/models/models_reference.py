"""Every scheme written out from its paper's equations, and a whole Llama around it, in plain tensor code.

Nothing here comes from `mixln`: this is what its placements are compared with. `l` is `depth` (from 1), L is `layers`;
a norm is called by the name that its gain has in a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Parts:
    """What a block is made of: its two sublayers, norms by name, and other learned tensors by name."""

    attention: Callable[[Tensor], Tensor]
    ffn: Callable[[Tensor], Tensor]
    norm: Callable[..., Tensor]
    weights: Mapping[str, Tensor] = field(default_factory=dict)


def pre(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """Mix-LN eq. 2: x + F(LN(x))."""
    del depth, layers
    x = x + p.attention(p.norm("input_layernorm", x))
    return x + p.ffn(p.norm("post_attention_layernorm", x))


def post(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """Mix-LN eq. 1: LN(x + F(x))."""
    del depth, layers
    x = p.norm("post_attention_layernorm", x + p.attention(x))
    return p.norm("post_feedforward_layernorm", x + p.ffn(x))


def mix(x: Tensor, depth: int, layers: int, p: Parts, alpha: float = 0.25, post_layers: int | None = None) -> Tensor:
    """Mix-LN, section 3: Post-LN in the first floor(alpha L) layers, Pre-LN in the others."""
    exact = Fraction(alpha).limit_denominator(10_000)
    count = math.floor(exact * layers) if post_layers is None else post_layers
    return post(x, depth, layers, p) if depth <= count else pre(x, depth, layers, p)


def lns(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """Curse of Depth, eq. 9: h(l) = LN(h(l)) / sqrt(l)."""
    del layers
    x = x + p.attention(p.norm("input_layernorm", x) / math.sqrt(depth))
    return x + p.ffn(p.norm("post_attention_layernorm", x) / math.sqrt(depth))


def deepnorm(x: Tensor, depth: int, layers: int, p: Parts, residual_scale: float | None = None) -> Tensor:
    """DeepNorm, figure 2: LN(alpha x + F(x)), alpha = (2 L)^(1/4) for decoders."""
    del depth
    alpha = math.sqrt(math.sqrt(2 * layers)) if residual_scale is None else residual_scale
    x = p.norm("post_attention_layernorm", x * alpha + p.attention(x))
    return p.norm("post_feedforward_layernorm", x * alpha + p.ffn(x))


def sandwich(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """CogView, Sandwich-LN: x + LN(F(LN(x)))."""
    del depth, layers
    x = x + p.norm("post_attention_layernorm", p.attention(p.norm("input_layernorm", x)))
    return x + p.norm("post_feedforward_layernorm", p.ffn(p.norm("pre_feedforward_layernorm", x)))


def b2t(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """Takase et al. 2022: LN(x_block + h + FFN(h)), h = LN(x_block + Attn(x_block))."""
    del depth, layers
    h = p.norm("post_attention_layernorm", x + p.attention(x))
    return p.norm("post_feedforward_layernorm", x + h + p.ffn(h))


def peri(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """Peri-LN: Norm on both ends of every sublayer; the norm on the embedding is not part of the block."""
    return sandwich(x, depth, layers, p)


def reordered(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """OLMo 2: h = x + RMSNorm(Attention(x)), y = h + RMSNorm(MLP(h))."""
    del depth, layers
    h = x + p.norm("post_attention_layernorm", p.attention(x))
    return h + p.norm("post_feedforward_layernorm", p.ffn(h))


def hybrid(x: Tensor, depth: int, layers: int, p: Parts, first_pre: bool = False) -> Tensor:
    """HybridNorm: FFN(Norm(Y)) + Norm(Y), Y = MHA_QKV(X) + X; HybridNorm*: MHA_QKV and FFN Pre-LN in the first block.

    The norms of q, k and v are those that `attend` finds among the weights.
    """
    if first_pre and depth == 1:
        return pre(x, depth, layers, p)
    normed = p.norm("post_attention_layernorm", p.attention(x) + x)
    return p.ffn(normed) + normed


def groupnorm(x: Tensor, depth: int, layers: int, p: Parts, groups: int = 8) -> Tensor:
    """Pre-LN whose norms take each group of neighbouring channels for itself."""
    del depth, layers
    x = x + p.attention(p.norm("input_layernorm", x, groups=groups))
    return x + p.ffn(p.norm("post_attention_layernorm", x, groups=groups))


def admin(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """Admin: LN(omega x + F(x)), omega a vector of the sublayer's own."""
    del depth, layers
    x = p.norm("post_attention_layernorm", p.weights["attention_residual.residual_scale"] * x + p.attention(x))
    return p.norm("post_feedforward_layernorm", p.weights["feed_forward_residual.residual_scale"] * x + p.ffn(x))


def no_norms(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """A residual network and nothing else."""
    del depth, layers
    x = x + p.attention(x)
    return x + p.ffn(x)


def gate(h: Tensor, p: Parts) -> Tensor:
    """GPAS: h - SiLU(g) sg(h)."""
    g = p.weights["activation_gate.weight"]
    return h - g * torch.sigmoid(g) * h.detach()


def pre_gpas(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """GPAS on Pre-LN: the gate after each addition."""
    del depth, layers
    x = gate(x + p.attention(p.norm("input_layernorm", x)), p)
    return gate(x + p.ffn(p.norm("post_attention_layernorm", x)), p)


def post_gpas(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """GPAS on Post-LN: the gate on the residual alone."""
    del depth, layers
    x = p.norm("post_attention_layernorm", gate(x, p) + p.attention(x))
    return p.norm("post_feedforward_layernorm", gate(x, p) + p.ffn(x))


def deepnorm_gpas(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """GPAS on DeepNorm: LN(alpha GPAS(x) + F(x)), alpha = (2 L)^(1/4)."""
    del depth
    alpha = math.sqrt(math.sqrt(2 * layers))
    x = p.norm("post_attention_layernorm", alpha * gate(x, p) + p.attention(x))
    return p.norm("post_feedforward_layernorm", alpha * gate(x, p) + p.ffn(x))


def sandwich_gpas(x: Tensor, depth: int, layers: int, p: Parts) -> Tensor:
    """GPAS on Sandwich-LN: the gate after each addition."""
    del depth, layers
    x = gate(x + p.norm("post_attention_layernorm", p.attention(p.norm("input_layernorm", x))), p)
    return gate(x + p.norm("post_feedforward_layernorm", p.ffn(p.norm("pre_feedforward_layernorm", x))), p)


def mix_gpas(x: Tensor, depth: int, layers: int, p: Parts, post_layers: int) -> Tensor:
    """GPAS on Mix-LN: that of Post-LN in the first layers, that of Pre-LN in the others."""
    return (post_gpas if depth <= post_layers else pre_gpas)(x, depth, layers, p)


BLOCKS: dict[str, Callable[..., Tensor]] = {
    "pre": pre,
    "post": post,
    "mix": mix,
    "lns": lns,
    "deepnorm": deepnorm,
    "sandwich": sandwich,
    "b2t": b2t,
    "peri": peri,
    "reordered": reordered,
    "hybrid": hybrid,
    "groupnorm": groupnorm,
    "admin": admin,
    "none": no_norms,
    "pre+gpas": pre_gpas,
    "post+gpas": post_gpas,
    "deepnorm+gpas": deepnorm_gpas,
    "sandwich+gpas": sandwich_gpas,
}

CASES: dict[str, tuple[str, dict[str, float]]] = {
    **{name: (name, {}) for name in BLOCKS},
    "mix(alpha=0.5)": ("mix", {"alpha": 0.5}),
    "mix(alpha=0.67)": ("mix", {"alpha": 0.67}),
    "mix(post_layers=3)": ("mix", {"post_layers": 3}),
    "deepnorm(residual_scale=1.5)": ("deepnorm", {"residual_scale": 1.5}),
    "hybrid(first_pre=true)": ("hybrid", {"first_pre": True}),
    "groupnorm(groups=2)": ("groupnorm", {"groups": 2}),
    "pre+qk_norm": ("pre", {}),
    "mix(alpha=0.5)+qk_norm(per_head=false)": ("mix", {"alpha": 0.5}),
    "reordered+qk_norm(per_head=false)": ("reordered", {}),
    "pre+dyt": ("pre", {}),
    "mix(alpha=0.5)+dyt(slope=1)": ("mix", {"alpha": 0.5}),
    "pre+qk_norm+dyt(attention_slope=0.8)": ("pre", {}),
    "pre+derf": ("pre", {}),
    "lns+derf(slope=0.2)": ("lns", {}),
}
"""Text form, and the reference with its options."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a Llama that its weights do not show."""

    layers: int
    heads: int
    key_value_heads: int
    theta: float = 10_000.0
    eps: float = 1e-6


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return gain * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def norm_by_name(name: str, x: Tensor, w: Mapping[str, Tensor], eps: float, groups: int = 1) -> Tensor:
    """The norm whose parameters have this name: RMSNorm over groups of channels, or a pointwise kind."""
    if f"{name}.shift" in w:
        return torch.erf(x * w[f"{name}.alpha"] + w[f"{name}.shift"]) * w[f"{name}.weight"] + w[f"{name}.bias"]
    if f"{name}.alpha" in w:
        return torch.tanh(x * w[f"{name}.alpha"]) * w[f"{name}.weight"] + w[f"{name}.bias"]
    gain = w[f"{name}.weight"]
    parts = zip(x.chunk(groups, -1), gain.chunk(groups), strict=True)
    return torch.cat([rms_norm(part, part_gain, eps) for part, part_gain in parts], dim=-1)


def rotate(x: Tensor, theta: float) -> Tensor:
    """RoFormer on (batch, heads, sequence, head size), halves paired as Llama does: (x_i, x_{i + size/2})."""
    length, size = x.shape[-2:]
    frequency = theta ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    angle = torch.arange(length, dtype=x.dtype)[:, None] * frequency
    first, second = x.split(size // 2, dim=-1)
    return torch.cat(
        (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()),
        dim=-1,
    )


def attend(x: Tensor, w: Mapping[str, Tensor], shape: Shape) -> Tensor:
    """Causal softmax attention with rotary positions; each key-value head serves consecutive query heads."""
    batch, length, _ = x.shape

    def project(name: str, heads: int) -> Tensor:
        states = x @ w[f"self_attn.{name}_proj.weight"].T
        norm, size = f"self_attn.{name}_norm", states.shape[-1] // heads
        if f"{norm}.weight" in w and len(w[f"{norm}.weight"]) > size:
            states = norm_by_name(norm, states, w, shape.eps)
        states = states.view(batch, length, heads, size)
        if f"{norm}.weight" in w and len(w[f"{norm}.weight"]) == size:
            states = norm_by_name(norm, states, w, shape.eps)
        return states.transpose(1, 2)

    q, k, v = project("q", shape.heads), project("k", shape.key_value_heads), project("v", shape.key_value_heads)
    q, k = rotate(q, shape.theta), rotate(k, shape.theta)
    k, v = (part.repeat_interleave(shape.heads // shape.key_value_heads, dim=1) for part in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).reshape(batch, length, -1) @ w["self_attn.o_proj.weight"].T


def swiglu(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    gate, up = x @ w["mlp.gate_proj.weight"].T, x @ w["mlp.up_proj.weight"].T
    return (gate * torch.sigmoid(gate) * up) @ w["mlp.down_proj.weight"].T


def llama_logits(
    weights: Mapping[str, Tensor], ids: Tensor, shape: Shape, text: str, *, embedding_factor: float = 1.0
) -> Tensor:
    """Logits of a whole Llama whose blocks follow the reference of `text` (a key of CASES)."""
    scheme, options = CASES.get(text, (text, {}))
    x = weights["model.embed_tokens.weight"][ids] * embedding_factor
    if "model.embedding_norm.weight" in weights:
        x = norm_by_name("model.embedding_norm", x, weights, shape.eps)
    for position in range(shape.layers):
        prefix = f"model.layers.{position}."
        w = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        parts = Parts(
            attention=lambda h, w=w: attend(h, w, shape),
            ffn=lambda h, w=w: swiglu(h, w),
            norm=lambda name, h, w=w, **options: norm_by_name(name, h, w, shape.eps, **options),
            weights=w,
        )
        x = BLOCKS[scheme](x, position + 1, shape.layers, parts, **options)
    if "model.norm.weight" in weights:
        x = norm_by_name("model.norm", x, weights, shape.eps)
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return x @ head.T + weights.get("lm_head.bias", 0.0)


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    return F.nll_loss(logits[:, :-1].flatten(0, 1).log_softmax(-1), ids[:, 1:].flatten())
