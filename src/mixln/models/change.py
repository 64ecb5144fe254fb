"""What another placement does to a model: whether the same weights compute the same function, and what is otherwise."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from mixln.placement import StackPlan, SublayerPlan


@dataclass(frozen=True)
class PlacementChange:
    """What `apply_placement` did, or would do.

    Attributes:
        placement: text form of the new placement.
        keeps_function: whether the model computes what it computed before; if not, its weights need training.
        differences: the parts of the plan that are otherwise, as `attention output_norm in 3 layers from 1 to 3`.
        added: names of parameters that are new, at the values at which training begins.
        removed: names of parameters that are gone.
    """

    placement: str
    keeps_function: bool
    differences: tuple[str, ...]
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __str__(self) -> str:
        verdict = "keeps the model's function" if self.keeps_function else "changes the function: train it"
        return "; ".join((f"{self.placement} {verdict}", *self.differences))


def describe_change(before: StackPlan, after: StackPlan, placement: str) -> PlacementChange:
    """Compare two stacks of as many blocks: do the same weights compute the same function, and what is otherwise."""
    differences: list[str] = []
    for name in ("embedding_scale", "embedding_norm", "final_norm"):
        if getattr(before, name) != getattr(after, name):
            differences.append(name)
    for sublayer in ("attention", "feed_forward"):
        for part in fields(SublayerPlan):
            pairs = [
                (getattr(getattr(one, sublayer), part.name), getattr(getattr(other, sublayer), part.name))
                for one, other in zip(before.blocks, after.blocks, strict=True)
            ]
            changed = [number for number, (one, other) in enumerate(pairs, start=1) if one != other]
            if changed:
                differences.append(f"{sublayer} {part.name} in {_count(changed)}")
    return PlacementChange(placement, _starting_function(after, before).same_function_as(before), tuple(differences))


def _starting_function(after: StackPlan, before: StackPlan) -> StackPlan:
    """Return the plan with what it has newly learned to scale taken out: at the beginning, that is the identity."""

    def neutral(new: SublayerPlan, old: SublayerPlan) -> SublayerPlan:
        scale = (
            old.residual_scale if new.residual_scale == "learned" and old.residual_scale == 1 else new.residual_scale
        )
        return replace(new, gate=new.gate if old.gate is not None else None, residual_scale=scale)

    blocks = tuple(
        replace(
            new,
            attention=neutral(new.attention, old.attention),
            feed_forward=neutral(new.feed_forward, old.feed_forward),
        )
        for new, old in zip(after.blocks, before.blocks, strict=True)
    )
    return replace(after, blocks=blocks)


def _count(layers: list[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers from {layers[0]} to {layers[-1]}"
