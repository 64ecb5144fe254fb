"""When each norm of a model is removed: schedules as data, the published ones and one for any number of layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from mixln.checked import Checked, PositiveInt, Range
from mixln.errors import InputError

NormPath = Literal["query_key", "value", "feed_forward", "final"]
"""Who reads the output of a norm: the attention's norm has two readers, whose scales are frozen apart."""

Target = NormPath | Literal["end_of_text", "first_position"]
"""What goes: the norm that a path reads, or the scale that a class of positions has of its own."""


@dataclass(frozen=True)
class Removal:
    """One step of a removal.

    Attributes:
        target: what goes.
        layer: from 0; None for what is of no layer.
        gap: training steps from this removal to the next, at the schedule's own pace.
    """

    target: Target
    layer: int | None
    gap: int

    def __str__(self) -> str:
        name = self.target.replace("_", " ")
        if self.target in ("end_of_text", "first_position"):
            return f"the exception of the {name}"
        return f"the {name} norm" + ("" if self.layer is None else f" of layer {self.layer + 1}")


@dataclass(frozen=True)
class RemovalSchedule(Checked):
    """The order of LN-free (Baroni et al. 2025, section on the method), with a gap of its own for each kind of norm.

    The feed-forward norms go first, from the first layer to the last, then the attention norms as query and key see
    them, then as value sees them, the final norm, the exception of the end-of-text token, that of the first position.

    Attributes:
        first_step: the training step, from 2, before which the first norm goes: it is frozen at what it saw before.
        feed_forward_gap: steps from the removal of one feed-forward norm to the next removal.
        query_key_gap: the same for the attention norms as query and key see them.
        value_gap: and as value sees them.
        final_gap: from the final norm to the exception of the end-of-text token.
        end_of_text_gap: from that to the exception of the first position.
        first_layer: the layer, from 1, to begin with; all norms of those before it go after the final norm, in the same
            order. For models whose first layers have tokens that are far from the average.
    """

    first_step: Annotated[int, Range(low=2)]
    feed_forward_gap: PositiveInt
    query_key_gap: PositiveInt
    value_gap: PositiveInt
    final_gap: PositiveInt
    end_of_text_gap: PositiveInt
    first_layer: PositiveInt = 1

    def removals(self, num_layers: int) -> tuple[Removal, ...]:
        """Return everything that goes, in order: 3 * num_layers + 3 removals."""
        kinds: tuple[tuple[NormPath, int], ...] = (
            ("feed_forward", self.feed_forward_gap),
            ("query_key", self.query_key_gap),
            ("value", self.value_gap),
        )
        begun = self.first_layer - 1
        return (
            *(Removal(path, layer, gap) for path, gap in kinds for layer in range(begun, num_layers)),
            Removal("final", None, self.final_gap),
            *(Removal(path, layer, gap) for path, gap in kinds for layer in range(begun)),
            Removal("end_of_text", None, self.end_of_text_gap),
            Removal("first_position", None, 0),
        )

    def last_step(self, num_layers: int) -> int:
        """Return the step before which the last removal is made, if nothing holds it up."""
        return self.first_step + sum(removal.gap for removal in self.removals(num_layers))

    def require_room(self, num_layers: int, steps: int) -> None:
        """Make sure that the schedule can be carried out on a model.

        Raises:
            InputError: it begins behind the last layer, or the steps do not suffice.
        """
        if self.first_layer > num_layers:
            raise InputError(f"first_layer is {self.first_layer}, and the model has {num_layers} layers")
        if (last := self.last_step(num_layers)) > steps:
            raise InputError(
                f"an impossible schedule: the last of {len(self.removals(num_layers))} removals of a model with "
                f"{num_layers} layers would be made before step {last}, but there are {steps} steps. Give more steps, "
                "or smaller gaps"
            )


@dataclass(frozen=True)
class PublishedRemoval:
    """How the norms of one of the published models were removed: 2^19 tokens a step, in rows of 1024.

    Attributes:
        schedule: of the removals.
        num_layers: of the model.
        steps: that were made.
        cosine_steps: the length of the learning rate's cosine to 0.
        learning_rate: its peak.
        warmup_steps: before the peak.
    """

    schedule: RemovalSchedule
    num_layers: int
    steps: int
    cosine_steps: int
    learning_rate: float
    warmup_steps: int


_FAST = RemovalSchedule(20, 2, 2, 3, 2, 10)
_SLOW = RemovalSchedule(30, 4, 4, 6, 2, 10)

PUBLISHED: dict[str, PublishedRemoval] = {
    "gpt2-small": PublishedRemoval(_FAST, 12, 300, 300, 6e-4, 20),
    "gpt2-medium": PublishedRemoval(_FAST, 24, 500, 500, 6e-4, 10),
    "gpt2-large": PublishedRemoval(_SLOW, 36, 600, 1200, 3e-4, 15),
    # the gaps of XL are not published for its 800 steps: those of large fit
    "gpt2-xl": PublishedRemoval(_SLOW, 48, 800, 1200, 3e-4, 15),
}

_SHARE_OF_STEPS = 0.6


def derived_schedule(num_layers: int, steps: int) -> RemovalSchedule:
    """Return a schedule for any model: that of GPT-2 small, stretched so that the removals take 60 % of the steps.

    GPT-2 small's takes 20 + 7 * num_layers + 12 steps, and 39 % of its 300; a rest is left for the model to recover.
    Gaps are whole steps: rounded down, and then those up again, the most shortened first, for which there is room. More
    than 60 % it takes only where gaps of one step do.

    Raises:
        InputError: there are too few steps for as many removals.
    """
    room = _SHARE_OF_STEPS * steps
    stretch = room / _FAST.last_step(num_layers)
    wanted = {name: stretch * value for name, value in vars(_FAST).items() if name != "first_layer"}
    found = RemovalSchedule(**{name: max(2 if name == "first_step" else 1, int(gap)) for name, gap in wanted.items()})
    for name in sorted(wanted, key=lambda name: getattr(found, name) / wanted[name]):
        longer = replace(found, **{name: math.ceil(wanted[name])})
        if getattr(longer, name) > getattr(found, name) and longer.last_step(num_layers) <= room:
            found = longer
    found.require_room(num_layers, steps)
    return found
