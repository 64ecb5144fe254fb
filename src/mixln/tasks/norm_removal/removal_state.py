"""What a checkpoint records of the removal of norms; read back from a file that anybody may have written."""

# no `from __future__ import annotations`: annotations that are strings are not checked

from typing import Any, TypedDict

from mixln.checked import NonNegativeInt, PositiveInt
from mixln.errors import InputError
from mixln.records import check_record

_WHERE = "the state of norm_removal in progress.json"


class RemovalState(TypedDict):
    """As `RemovalCallback.state` gives it."""

    made: list[NonNegativeInt]
    next_step: NonNegativeInt
    reference: float | None
    losses: list[float]
    is_spiking: bool
    pace: PositiveInt
    waited_steps: NonNegativeInt
    num_roll_backs: NonNegativeInt


def check_removal_state(state: dict[str, Any], num_removals: int) -> None:
    """Make sure that a state is one of a run that removes so many norms; {} is that of its beginning.

    Raises:
        InputError: it lacks something, or has values of other types, or more removals.
    """
    if not state:
        return
    check_record(RemovalState, state, _WHERE)
    if len(state["made"]) > num_removals:
        raise InputError(f"{_WHERE}: {len(state['made'])} removals were made, of {num_removals}")
