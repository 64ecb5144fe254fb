"""What another placement does to a model: whether the same weights compute the same function, and what is otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mixln.placement import StackPlan, SublayerPlan
from mixln.placement.departures import departures


@dataclass(frozen=True)
class PlacementChange:
    """What `apply_placement` did, or would do.

    Attributes:
        placement: text form of the new placement.
        keeps_function: whether the model computes what it computed before; if not, its weights need training.
        differences: in words, the parts of the formula that are otherwise, with their layers.
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
    keeps = _starting_function(after, before).same_function_as(before)
    return PlacementChange(placement, keeps, tuple(departures(after, before)))


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
    # a new bias of the head is 0; the one that goes was trained
    return replace(after, blocks=blocks, head_bias=after.head_bias and before.head_bias)
