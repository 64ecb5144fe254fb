"""The blocks of any model, and the encoder around them; where they are is known by `mixln.models.anatomy`."""

from __future__ import annotations

from typing import Any

from torch import nn

from mixln.models.anatomy import BlockList, BlockStack, find_block_stack, lists_of_blocks
from mixln.models.causal import without_heads
from mixln.models.foreign import ModelCallError, naming_failures

__all__ = ["BlockList", "BlockStack", "block_stack_of", "encoder_around", "find_block_stack", "lists_of_blocks"]


def encoder_around(model: nn.Module, layers: str | None) -> tuple[nn.Module, str, str] | None:
    """The encoder of an encoder-decoder, its name, and that of a list of blocks in it; None if the list is elsewhere.

    An encoder runs on text alone; the whole model needs a second text, for its decoder.

    Args:
        model: any.
        layers: name of the list, in the model or in its part without heads.
    """
    base, prefix = without_heads(model)
    get: Any = getattr(base, "get_encoder", None)
    if layers is None or get is None or not getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return None
    try:
        with naming_failures(f"a {type(base).__name__} does not give its encoder"):
            encoder = get()
    except ModelCallError:
        return None
    name = next((name for name, module in base.named_modules() if module is encoder), "")
    inside = layers.removeprefix(prefix)
    return (encoder, prefix + name, inside.removeprefix(f"{name}.")) if name and inside.startswith(f"{name}.") else None


def block_stack_of(model: nn.Module | BlockStack) -> BlockStack:
    """The blocks of a model, found if they are not yet.

    Raises:
        InputError: as `find_block_stack`.
    """
    return model if isinstance(model, BlockStack) else find_block_stack(model)
