"""How one plan differs from another, in words: for errors that name the part that stands in the way."""

from __future__ import annotations

from mixln.placement.plan import NORM, SUBLAYERS, NormPlan, StackPlan, SublayerPlan
from mixln.placement.words import layer_ranges


def departures(plan: StackPlan, stock: StackPlan) -> list[str]:
    """Return the parts in which a plan differs from another one, each with its layers (from 1)."""
    found: dict[tuple[str, str], list[int]] = {}
    for layer, (block, other) in enumerate(zip(plan.blocks, stock.blocks, strict=True), start=1):
        by_sublayer = [_differences(block.sublayer(one), other.sublayer(one)) for one in SUBLAYERS]
        for what in dict.fromkeys(what for differences in by_sublayer for what in differences):
            where = " and ".join(one for one, own in zip(_SUBLAYER_NAMES, by_sublayer, strict=True) if what in own)
            found.setdefault((what, where), []).append(layer)
    parts = [f"{what} ({where}, {layer_ranges(layers)})" for (what, where), layers in found.items()]
    if plan.embedding_scale != stock.embedding_scale:
        parts.append("a factor on the embedding")
    if plan.embedding_norm != stock.embedding_norm:
        parts.append(_norm_in_words("a norm on the embedding", plan.embedding_norm))
    if plan.final_norm != stock.final_norm:
        parts.append(_norm_in_words("a norm before the head", plan.final_norm))
    if plan.head_bias != stock.head_bias:
        parts.append("a bias of the head" if plan.head_bias else "no bias of the head")
    return parts


_SUBLAYER_NAMES = ("attention", "feed-forward")

_NORM_PARTS = {
    "input_norm": "a norm on the sublayer's input (N_in)",
    "branch_norm": "a norm on the sublayer's output (N_branch)",
    "output_norm": "a norm on the stream after the addition (N_out)",
}

_OTHER_PARTS = {
    "gain": "a factor on the normed input (gain)",
    "residual_scale": "a factor on the stream (rho)",
    "bypass": "the block's input added to the stream once more (bypass)",
    "gate": "a trained gate on the stream (S or P)",
}


def _differences(plan: SublayerPlan, stock: SublayerPlan) -> list[str]:
    norms = [
        _norm_in_words(what, getattr(plan, part))
        for part, what in _NORM_PARTS.items()
        if getattr(plan, part) != getattr(stock, part)
    ]
    others = [what for part, what in _OTHER_PARTS.items() if getattr(plan, part) != getattr(stock, part)]
    if plan.qkv_norm == stock.qkv_norm:
        return norms + others
    if plan.qkv_norm is None:
        return [*norms, *others, "no norm of queries and keys"]
    width = "per head" if plan.qkv_norm.per_head else "over the full width"
    names = _norm_in_words(f"a norm of {', '.join(plan.qkv_norm.projections)} {width}", plan.qkv_norm.norm)
    return [*norms, *others, names]


def _norm_in_words(what: str, norm: NormPlan | None) -> str:
    if norm is None:
        return f"no {what.removeprefix('a ')}"
    kind = "" if norm.kind == NORM.kind else f" of kind {norm.kind}"
    groups = "" if norm.groups == 1 else f" in {norm.groups} groups"
    return f"{what}{kind}{groups}"
