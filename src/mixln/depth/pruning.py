"""Taking blocks out of a model for good, or for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from mixln.depth.stack import BlockList, BlockStack
from mixln.errors import InputError
from mixln.models import PlacedConfig

_LAYER_INDEX = "layer_idx"


def remove_blocks(stack: BlockStack, removed: Sequence[int]) -> BlockStack:
    """Take blocks out of a model, in place, so that it is an ordinary model of fewer layers.

    The rest is renumbered (their `layer_idx` is where the cache of generation keeps their keys and values), and in the
    config the number of layers and every list with an entry for each layer get shorter. A model of this library also
    notes each survivor's original depth l and the original L, which scalars such as LNS's 1 / sqrt(l) go by.

    Args:
        stack: of the model.
        removed: indices (from 0).

    Returns:
        The stack of what is left.

    Raises:
        InputError: an index is out of range or given twice, none would be left, or the config does not tell its layers.
    """
    num_layers = len(stack.layers)
    check_removable(removed, num_layers)
    kept = [index for index in range(num_layers) if index not in set(removed)]
    for config in _configs_of(stack):
        _shorten_config(config, kept, num_layers)
    for new_index, old_index in enumerate(kept):
        for module in stack.layers[old_index].modules():
            if getattr(module, _LAYER_INDEX, None) == old_index:
                setattr(module, _LAYER_INDEX, new_index)
    layers = _list_like(stack.layers, [stack.layers[index] for index in kept])
    _set_list(stack, layers)
    return BlockStack(stack.model, stack.name, layers)


@contextmanager
def without_blocks(stack: BlockStack, removed: Sequence[int]) -> Iterator[None]:
    """The model without some blocks inside the `with` block, and as it was after it.

    Raises:
        InputError: as `remove_blocks`.
    """
    configs = [(config, dict(config.__dict__)) for config in _configs_of(stack)]
    indices = [
        (module, getattr(module, _LAYER_INDEX))
        for block in stack.layers
        for module in block.modules()
        if hasattr(module, _LAYER_INDEX)
    ]
    try:
        remove_blocks(stack, removed)
        yield
    finally:
        for config, before in configs:
            config.__dict__.clear()
            config.__dict__.update(before)
        for module, index in indices:
            setattr(module, _LAYER_INDEX, index)
        _set_list(stack, stack.layers)


def check_removable(removed: Sequence[int], num_layers: int) -> None:
    """Make sure that these blocks (indices from 0) can be taken out of a model of `num_layers`.

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


def _configs_of(stack: BlockStack) -> list[Any]:
    """The configs that say how many blocks there are: of the model, and of its parts around the blocks."""
    found: list[Any] = []
    modules = [stack.model]
    path = stack.name.split(".")
    for length in range(1, len(path)):
        modules.append(stack.model.get_submodule(".".join(path[:length])))
    for module in modules:
        config = getattr(module, "config", None)
        if config is None:
            continue
        for candidate in (config, config.get_text_config() if hasattr(config, "get_text_config") else config):
            says = getattr(candidate, "num_hidden_layers", None) == len(stack.layers)
            if says and all(candidate is not other for other in found):
                found.append(candidate)
    if not found:
        raise InputError(
            f"the config of a {type(stack.model).__name__} does not say num_hidden_layers = {len(stack.layers)}, so a "
            "model of fewer layers could not be saved"
        )
    return found


def _shorten_config(config: Any, kept: Sequence[int], num_layers: int) -> None:
    lists = {
        name: value
        for name, value in config.__dict__.items()
        if isinstance(value, (list, tuple)) and len(value) == num_layers and name not in _NOT_PER_LAYER
    }
    if isinstance(config, PlacedConfig):
        depths = config.placement_depths or list(range(1, num_layers + 1))
        config.placement_num_layers = config.placement_num_layers or num_layers
        config.placement_depths = [depths[index] for index in kept]
        lists.pop("placement_depths", None)
    for name, value in lists.items():
        setattr(config, name, type(value)(value[index] for index in kept))
    config.num_hidden_layers = len(kept)


_NOT_PER_LAYER = {"architectures", "eos_token_id"}
"""Lists of a config that are never about layers, however long."""


def _list_like(layers: BlockList, kept: list[nn.Module]) -> BlockList:
    return nn.Sequential(*kept) if isinstance(layers, nn.Sequential) else nn.ModuleList(kept)


def _set_list(stack: BlockStack, layers: BlockList) -> None:
    parent, _, name = stack.name.rpartition(".")
    setattr(stack.model.get_submodule(parent), name, layers)
