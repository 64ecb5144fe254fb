"""The names of norms, and of all parameters that a placement brings into a Llama. Only rare norms need PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

from mixln.placement.plan import NORM, SUBLAYERS, BlockPlan, NormPlan, StackPlan, SublayerPlan


def block_parameters(plan: BlockPlan) -> list[str]:
    """Return the names, within a Llama block, of its parameters but the matrices: norms, gate, learned scales."""
    names: list[str] = []
    if (inside := plan.attention.qkv_norm) is not None:
        for projection in inside.projections:
            names += _parameters(f"self_attn.{projection[0]}_norm", inside.norm)
    for _, _, name, norm in block_norms(plan):
        names += _parameters(name, norm)
    sublayers = [(name, plan.sublayer(name)) for name in SUBLAYERS]
    if any(sublayer.gate is not None for _, sublayer in sublayers):
        names.append("activation_gate.weight")
    return names + [f"{name}_residual.residual_scale" for name, one in sublayers if one.residual_scale == "learned"]


def outside_parameters(plan: StackPlan) -> list[str]:
    """Return the names of the parameters of a Llama outside its blocks, but the matrices."""
    around = (("model.embedding_norm", plan.embedding_norm), ("model.norm", plan.final_norm))
    names = [parameter for name, norm in around if norm is not None for parameter in _parameters(name, norm)]
    return [*names, "lm_head.bias"] if plan.head_bias else names


def block_norms(plan: BlockPlan) -> list[tuple[str, str, str, NormPlan]]:
    """Return (sublayer, part of the formula, attribute name, plan) of every norm of a block."""
    attention, feed_forward = plan.attention, plan.feed_forward
    name_is_free = attention.branch_norm is None and attention.output_norm is None
    places = [
        ("attention", "input_norm", "input_layernorm"),
        ("attention", "branch_norm", "post_attention_layernorm"),
        ("attention", "output_norm", _output_name(attention, "post_attention")),
        ("feed_forward", "input_norm", "post_attention_layernorm" if name_is_free else "pre_feedforward_layernorm"),
        ("feed_forward", "branch_norm", "post_feedforward_layernorm"),
        ("feed_forward", "output_norm", _output_name(feed_forward, "post_feedforward")),
    ]
    found = [(sublayer, part, name, getattr(getattr(plan, sublayer), part)) for sublayer, part, name in places]
    return [(sublayer, part, name, norm) for sublayer, part, name, norm in found if norm is not None]


def _output_name(sublayer: SublayerPlan, prefix: str) -> str:
    return f"{prefix}_layernorm" if sublayer.branch_norm is None else f"{prefix}_residual_layernorm"


def _parameters(name: str, norm: NormPlan) -> Iterator[str]:
    """The names of a norm's parameters, where the architecture's own norm is RMSNorm."""
    if norm.kind == NORM.kind:
        yield f"{name}.weight"
    else:
        from mixln.placement.norms import POINTWISE

        yield from (f"{name}.{own}" for own, _ in POINTWISE[norm.kind](1, norm.slope).named_parameters())
