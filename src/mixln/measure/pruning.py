"""Running a model without some of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from mixln.errors import InputError
from mixln.measure.calls import BlockCall
from mixln.measure.recording import replaced_forwards
from mixln.models.anatomy import BlockStack


@contextmanager
def without_blocks(stack: BlockStack, removed: Sequence[int]) -> Iterator[None]:
    """The model without some blocks inside the `with` block: they hand on what they are given.

    The blocks themselves, their numbers and the config stay as they are. What a block returns beside the hidden states
    is still computed.

    Args:
        stack: the blocks.
        removed: indices (from 0) of those that are left out.

    Raises:
        InputError: as `check_removable`.
    """
    check_removable(removed, len(stack.layers))
    with replaced_forwards({stack.layers[index]: _handing_on(stack.layers[index]) for index in removed}):
        yield


def _handing_on(block: nn.Module) -> Callable[..., Any]:
    compute = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = BlockCall(args, kwargs, {}).hidden_states
        output = compute(*args, **kwargs)
        return type(output)((given, *output[1:])) if isinstance(output, (tuple, list)) else given

    return forward


def kept_blocks(removed: Sequence[int], num_layers: int) -> list[int]:
    """Return the indices (from 0) of the blocks that stay.

    Args:
        removed: indices (from 0) of those that go.
        num_layers: of the model.

    Raises:
        InputError: as `check_removable`.
    """
    check_removable(removed, num_layers)
    return [index for index in range(num_layers) if index not in set(removed)]


def check_removable(removed: Sequence[int], num_layers: int) -> None:
    """Make sure that these blocks can be taken out of a model.

    Args:
        removed: their indices (from 0).
        num_layers: of the model.

    Raises:
        InputError: an index is out of range or given twice, there is none, or no block would be left; layers are
            counted from 1 in the message.
    """
    if not removed:
        raise InputError("no layer to remove: name at least one")
    if outside := sorted(index + 1 for index in removed if not 0 <= index < num_layers):
        raise InputError(f"there is no layer {outside[0]}: the model has layers 1 to {num_layers}")
    if len(set(removed)) < len(removed):
        twice = next(index for index in removed if list(removed).count(index) > 1)
        raise InputError(f"layer {twice + 1} is named twice")
    if len(removed) == num_layers:
        raise InputError(f"all {num_layers} layers would be removed: leave at least one")
