"""What a model is made of, without its weights: tensors, modules and their own numbers; how shorter ones compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

_SCALARS = (bool, int, float, str, type(None))
_Tensors = dict[str, tuple[str, tuple[int, ...]]]
_COMPUTED = "computed buffer"


@dataclass(frozen=True)
class Structure:
    """A model without its weights.

    Attributes:
        tensors: name to kind (parameter, buffer, computed buffer) and shape.
        numbers: name of a module to its class (under the key "") and its own numbers, switches, words and lists.
    """

    tensors: _Tensors
    numbers: dict[str, dict[str, Any]]

    @property
    def saved(self) -> _Tensors:
        """The tensors that a saved folder holds. Others are computed, and some grow when a longer text is run."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor[0] != _COMPUTED}


def structure_of(model: nn.Module) -> Structure:
    """Return the structure of a model, tied tensors under each of their names."""
    tensors: _Tensors = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tensors[name] = ("parameter", tuple(parameter.shape))
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers(remove_duplicate=False):
        tensors[name] = ("buffer" if name in saved else _COMPUTED, tuple(buffer.shape))
    numbers = {name: _numbers(module) for name, module in model.named_modules(remove_duplicate=False)}
    return Structure(tensors, numbers)


def describe(
    model_class: type[PreTrainedModel], fields: Mapping[str, Any], config: PreTrainedConfig
) -> PreTrainedModel:
    """Build the model that a config with these fields describes, on the meta device: it has no weights.

    Args:
        model_class: of the model.
        fields: as `config.to_dict()` gives them.
        config: whose class the fields are of.
    """
    with torch.device("meta"):
        return model_class._from_config(type(config).from_dict(dict(fields)))


def _numbers(module: nn.Module) -> dict[str, Any]:
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }
    return {"": type(module).__name__, **own}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _SCALARS)


@dataclass(frozen=True)
class Shortening:
    """Which blocks stay.

    Attributes:
        stack: name of the list of blocks.
        kept: their indices (from 0) before.
        num_layers: before.
    """

    stack: str
    kept: tuple[int, ...]
    num_layers: int

    def before(self, name: str) -> str:
        """The name that something of the shorter model had in the whole one."""
        index, rest = self.split(name)
        return name if index is None else f"{self.stack}.{self.kept[index]}{rest}"

    def after(self, name: str) -> str | None:
        """The name in the shorter model of something of the whole one; None: it goes."""
        index, rest = self.split(name)
        if index is None:
            return name
        return f"{self.stack}.{self.kept.index(index)}{rest}" if index in self.kept else None

    def split(self, name: str) -> tuple[int | None, str]:
        """As `split_name`."""
        return split_name(self.stack, name)


def split_name(stack: str, name: str) -> tuple[int | None, str]:
    """The index of the block of a stack that a name lies in (None: in none), and what follows it in the name."""
    if not name.startswith(f"{stack}."):
        return None, name
    index, dot, rest = name[len(stack) + 1 :].partition(".")
    return (int(index), dot + rest) if index.isdecimal() else (None, name)


def is_whole_number(value: Any) -> bool:
    """Whether a value is an integer, and no switch."""
    return isinstance(value, int) and not isinstance(value, bool)


def slice_of_layers(tensor: torch.Tensor, dimension: int, shortening: Shortening) -> torch.Tensor:
    """Return the part of a tensor that is of the blocks that stay: its dimension has as many numbers for each block."""
    parts = tensor.chunk(shortening.num_layers, dimension)
    return torch.cat([parts[index] for index in shortening.kept], dimension).contiguous()


class ShorterModel:
    """What a model must be made of when some of its blocks are gone.

    Args:
        whole: structure of the model before.
        shortening: which blocks stay.
    """

    def __init__(self, whole: Structure, shortening: Shortening) -> None:
        self.whole = whole
        self.shortening = shortening
        self._labels = self._find_labels()
        self._tensors = {
            new: found for name, found in whole.tensors.items() if (new := shortening.after(name)) is not None
        }
        self._modules = {new for name in whole.numbers if (new := shortening.after(name)) is not None}

    def differences(self, described: Structure) -> list[str]:
        """Return in words how a model differs from what it must be; []: it is the shorter model."""
        sliced = self.sliced(described)
        wrong = [
            f"{name} would be {_shown(described.tensors.get(name))}, and is {_shown(self._tensors.get(name))}"
            for name in sorted({*self._tensors, *described.tensors})
            if self._tensors.get(name) != described.tensors.get(name) and name not in sliced
        ]
        modules = sorted(self._modules ^ described.numbers.keys())
        wrong += [f"{name} would {'not ' if name in self._modules else ''}be there" for name in modules]
        for name in self._modules & described.numbers.keys():
            wrong += [
                f"{name}.{attribute} would be {there!r}, and is {here!r}"
                for attribute, here, there in self._changed(name, described)
                if not self._is_label(name, attribute, here, there)
                and not (any(tensor.rpartition(".")[0] == name for tensor in sliced) and self._is_share(here, there))
            ]
        return wrong

    def sliced(self, described: Structure) -> dict[str, int]:
        """Return tensors outside the blocks with a part for each block (embeddings for every layer): name to dimension.

        Such a dimension is of L x k numbers, those of a layer side by side, and would be of k for each that is left.
        """
        found: dict[str, int] = {}
        for name in self._tensors.keys() & described.tensors.keys():
            (kind, here), (other, there) = self._tensors[name], described.tensors[name]
            differing = [dim for dim, (one, two) in enumerate(zip(here, there, strict=False)) if one != two]
            same_form = kind == other and len(here) == len(there) and self.shortening.split(name)[0] is None
            if same_form and len(differing) == 1 and self._is_share(here[differing[0]], there[differing[0]]):
                found[name] = differing[0]
        return found

    def _is_share(self, here: Any, there: Any) -> bool:
        are_numbers = is_whole_number(here) and is_whole_number(there)
        return are_numbers and here * len(self.shortening.kept) == there * self.shortening.num_layers

    def _changed(self, name: str, described: Structure) -> Iterator[tuple[str, Any, Any]]:
        before, after = self.whole.numbers[self.shortening.before(name)], described.numbers[name]
        for attribute in before.keys() & after.keys():
            if before[attribute] != after[attribute]:
                yield attribute, before[attribute], after[attribute]

    def _is_label(self, name: str, attribute: str, here: Any, there: Any) -> bool:
        """Whether a value goes with a layer's place or the number of layers, and was to change in just this way."""
        kept, num_layers = self.shortening.kept, self.shortening.num_layers
        if isinstance(here, (list, tuple)):
            entries = list(here)
            if len(entries) == num_layers and list(there) == [entries[index] for index in kept]:
                return True
            are_indices = all(self._is_place(entry) for entry in entries)
            return are_indices and list(there) == [self._new_place(entry) for entry in entries if entry in kept]
        if not self._is_place(here):
            return False
        index, rest = self.shortening.split(name)
        if index is not None and (shift := self._labels.get((rest, attribute))) is not None:
            return there == index + shift
        # how many there are, where others begin, whose keys and values are shared
        return there == self._new_place(here)

    def _is_place(self, value: Any) -> bool:
        return is_whole_number(value) and 0 <= value <= self.shortening.num_layers

    def _new_place(self, place: int) -> int:
        return sum(index < place for index in self.shortening.kept)

    def _find_labels(self) -> dict[tuple[str, str], int]:
        """Numbers that are a layer's index plus the same in every layer that has them: by place in the layer, this."""
        shifts: dict[tuple[str, str], set[int | None]] = {}
        for name, numbers in self.whole.numbers.items():
            index, rest = self.shortening.split(name)
            if index is None:
                continue
            for attribute, value in numbers.items():
                shift = value - index if is_whole_number(value) else None
                shifts.setdefault((rest, attribute), set()).add(shift)
        return {place: shift for place, found in shifts.items() for shift in (0, 1) if found == {shift}}


def layer_kinds(structure: Structure, stack: str) -> dict[int, Any]:
    """Return what tells layers of different kinds apart: tensors, classes, switches and words of each."""
    kinds: dict[int, set[Any]] = {}
    for name, tensor in structure.tensors.items():
        index, rest = split_name(stack, name)
        if index is not None:
            kinds.setdefault(index, set()).add((rest, tensor))
    for name, numbers in structure.numbers.items():
        index, rest = split_name(stack, name)
        if index is not None:
            words = {(rest, key, value) for key, value in numbers.items() if isinstance(value, (bool, str))}
            kinds.setdefault(index, set()).update(words)
    return {index: frozenset(kinds[index]) for index in sorted(kinds)}


def outside(structure: Structure, stack: str) -> _Tensors:
    """Return the tensors that lie in no block."""
    return {name: found for name, found in structure.tensors.items() if split_name(stack, name)[0] is None}


def is_identity(module: nn.Module) -> bool:
    """Whether a module hands its input on as it is, as dropout and dropped paths do when a model is used."""
    if next(module.parameters(), None) is not None:
        return False
    given = torch.linspace(-1.0, 1.0, 8).reshape(1, 2, 4)
    training, module.training = module.training, False
    try:
        with torch.no_grad():
            return torch.equal(module(given), given)
    except Exception:  # whatever else it may be, it is not the identity on any tensor
        return False
    finally:
        module.training = training


def without_identities(whole: Structure, model: nn.Module) -> Structure:
    """Leave out the numbers of modules that are the identity in use, such as dropout that grows with depth."""
    numbers = {
        name: {} if _may_drop(own) and is_identity(model.get_submodule(name)) else own
        for name, own in whole.numbers.items()
    }
    return Structure(whole.tensors, numbers)


def _may_drop(own: Mapping[str, Any]) -> bool:
    return own[""] == nn.Identity.__name__ or any(isinstance(value, float) for value in own.values())


def _shown(found: tuple[str, Sequence[int]] | None) -> str:
    return "missing" if found is None else f"a {found[0]} of {' x '.join(map(str, found[1])) or 'one number'}"
