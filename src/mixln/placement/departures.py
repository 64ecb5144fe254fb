"""In what one plan departs from another, in words: for errors that name the part nothing can be done about."""

from __future__ import annotations

from collections.abc import Iterable

from mixln.placement.plan import NORM, SUBLAYERS, NormPlan, StackPlan, SublayerPlan


def departures(plan: StackPlan, stock: StackPlan) -> list[str]:
    """Return what a plan has otherwise than another one, part by part, with the layers (from 1) that it concerns."""
    found: dict[tuple[str, str], list[int]] = {}
    for layer, (block, other) in enumerate(zip(plan.blocks, stock.blocks, strict=True), start=1):
        by_sublayer = [_differences(block.sublayer(one), other.sublayer(one)) for one in SUBLAYERS]
        for what in dict.fromkeys(what for differences in by_sublayer for what in differences):
            where = " and ".join(one for one, own in zip(_SUBLAYER_NAMES, by_sublayer, strict=True) if what in own)
            found.setdefault((what, where), []).append(layer)
    parts = [f"{what} ({where}, {_layers(layers)})" for (what, where), layers in found.items()]
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


def _layers(numbers: Iterable[int]) -> str:
    """Return numbers in words: `layers 1-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"layer{'s' if len(runs) > 1 or len(runs[0]) > 1 else ''} {text}"
