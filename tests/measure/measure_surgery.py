"""Taking blocks out of a model in memory: what a pruned model must compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mixln.measure.pruning import kept_blocks
from mixln.measure.shorter_config import Edit, ShorterConfig, shorter_configs
from mixln.measure.structure import slice_of_layers, structure_of
from mixln.models.anatomy import BlockList, BlockStack


def remove_blocks(stack: BlockStack, removed: Sequence[int]) -> BlockStack:
    """Take blocks out of a model, in place, so that it is an ordinary model of fewer layers.

    What only numbers layers is renumbered (`layer_idx` is where the cache of generation keeps a layer's keys and
    values), and the config becomes the one that describes what is left. A model of this library also notes each
    survivor's original depth l and the original L, which scalars such as LNS's 1 / sqrt(l) go by.

    Args:
        stack: of the model.
        removed: indices (from 0).

    Returns:
        The stack of what is left.

    Raises:
        InputError: an index is out of range or given twice, none would be left, or no config describes what is left;
            the model is as it was then.
    """
    kept = kept_blocks(removed, len(stack.layers))
    found = next(shorter_configs(stack, kept))
    _edit_configs(stack.model, found.edits)
    layers = _list_like(stack.layers, [stack.layers[index] for index in kept])
    _set_list(stack, layers)
    _relabel(stack.model, found)
    return BlockStack(stack.model, stack.name, layers)


def _edit_configs(model: nn.Module, edits: Sequence[Edit]) -> None:
    """Set the fields in the model's config, and in the copies of it that its modules keep."""
    for edit in edits:
        config: Any = model.config
        for name in edit.path:
            config = getattr(config, name)
        before = getattr(config, edit.key)
        copies = {
            id(own): own for module in model.modules() if type(own := getattr(module, "config", None)) is type(config)
        }
        for own in (config, *copies.values()):
            if own is config or getattr(own, edit.key, None) == before:
                if isinstance(getattr(type(own), edit.key, None), property):
                    setattr(own, edit.key, edit.value)
                else:  # past the checks of a single field: they are of one that stands alone
                    own.__dict__[edit.key] = edit.value


def _relabel(model: nn.Module, found: ShorterConfig) -> None:
    described, shorter = structure_of(found.described), found.shorter
    for name, numbers in described.numbers.items():
        before = shorter.whole.numbers[shorter.shortening.before(name)]
        for attribute, value in numbers.items():
            if attribute in before and before[attribute] != value:
                setattr(model.get_submodule(name), attribute, value)
    for name, dimension in shorter.sliced(described).items():
        module, _, tensor = name.rpartition(".")
        whole = getattr(model.get_submodule(module), tensor)
        whole.data = slice_of_layers(whole.data, dimension, shorter.shortening)


def _list_like(layers: BlockList, kept: list[nn.Module]) -> BlockList:
    return nn.Sequential(*kept) if isinstance(layers, nn.Sequential) else nn.ModuleList(kept)


def _set_list(stack: BlockStack, layers: BlockList) -> None:
    parent, _, name = stack.name.rpartition(".")
    setattr(stack.model.get_submodule(parent), name, layers)
