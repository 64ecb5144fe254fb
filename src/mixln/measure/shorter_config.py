"""The config of a model some of whose blocks are gone: found by trying, judged by the model that it describes.

Where a config counts its layers, lists them, or has a rule for them differs from architecture to architecture, and no
list of names would stay true. So every field that could be one is tried, and a model is built (on the meta device,
without weights) of each config that results. The right one describes just what is left of the model.

Two examples. Of a Bamba of 4 layers with `attn_layer_indices: [1, 3]`, the second layer goes:

1. `_counts` finds the field that says 4: `num_hidden_layers`, now 3.
2. `_lists` finds a list of different places below 4: without the layer, and counted anew, `[2]`. That is the first try.
3. The model of `num_hidden_layers: 3, attn_layer_indices: [2]` has the parts of what is left: it is the answer. Had the
   list been about something else, the model would differ, and the next try would leave the list as it is.

Of a DeepSeek-V3 with `first_k_dense_replace: 2` (the first two layers have no experts), the first layer goes. No list
says so, and with 3 layers the second of them has no experts where it should. `_rules` then changes the numbers that
move experts from layer to layer, each time the one that brings the model nearest to what is left:
`first_k_dense_replace: 1`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from mixln.errors import InputError
from mixln.measure.structure import (
    Shortening,
    ShorterModel,
    Structure,
    describe,
    is_whole_number,
    layer_kinds,
    outside,
    structure_of,
    without_identities,
)
from mixln.models import PlacedConfig
from mixln.models.anatomy import BlockStack

_MOST_TRIES = 300
_COUNT = "num_hidden_layers"


@dataclass(frozen=True)
class Edit:
    """One field of a config, with its new value.

    Attributes:
        path: names of the configs that lead to it, from the model's own.
        key: of the field.
        value: new.
    """

    path: tuple[str, ...]
    key: str
    value: Any


@dataclass(frozen=True)
class ShorterConfig:
    """A config that `shorter_configs` found.

    Attributes:
        edits: of the config.
        fields: of the shorter model's config, as `to_dict` gives them.
        described: the shorter model, on the meta device.
        shorter: what it was compared with.
    """

    edits: tuple[Edit, ...]
    fields: dict[str, Any]
    described: PreTrainedModel
    shorter: ShorterModel


def shorter_configs(stack: BlockStack, kept: Sequence[int]) -> Iterator[ShorterConfig]:
    """Find the configs of a model with these blocks alone, the likeliest first; mostly there is one.

    There can be several, since what a model takes from its config only when it runs does not show: run it then.

    Args:
        stack: of the whole model.
        kept: indices (from 0).

    Raises:
        InputError: no config of the architecture describes what is left, or the model's own is wrong.
    """
    model = stack.model
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"a {type(model).__name__} has no config of transformers, so a shorter one could not be saved")
    return _Search(model, Shortening(stack.name, tuple(kept), len(stack.layers))).find()


class _Search:
    def __init__(self, model: PreTrainedModel, shortening: Shortening) -> None:
        self._model = model
        self._fields = model.config.to_dict()
        self._shortening = shortening
        self._kind = type(model).__name__
        self._tries = 0
        self._distances: dict[str, float] = {}
        whole = self._build(())
        if whole is None or whole.saved != structure_of(model).saved:
            raise InputError(
                f"the config of a {self._kind} does not describe the model as it is, so a shorter one could not be "
                "saved"
            )
        self._whole = whole
        self._shorter = ShorterModel(without_identities(whole, model), shortening)
        self._closest: tuple[int, tuple[Edit, ...], list[str]] | None = None
        self._configs = [(path, config, _at(self._fields, path)) for path, config in _walk(model.config)]

    def find(self) -> Iterator[ShorterConfig]:
        found: list[dict[str, Any]] = []
        for edits in self._edits():
            if self._distance(edits) == 0:
                described = self._described(edits)
                fields = described.config.to_dict()
                if fields not in found:
                    found.append(fields)
                    yield ShorterConfig(edits, edited(self._fields, edits), described, self._shorter)
        if not found:
            raise InputError(self._refusal())

    def _edits(self) -> Iterator[tuple[Edit, ...]]:
        yield from self._lengths()
        if self._closest is not None and self._closest[0] > 0:
            yield from self._rules(self._closest[1])

    def _lengths(self) -> Iterator[tuple[Edit, ...]]:
        """Edits of what counts layers, and of lists that are about them."""
        for path, config, counts in self._counts():
            lists = list(self._lists(path, config, [edit.key for edit in counts]))
            for chosen in _by_likelihood(list(map(len, lists))):
                yield (*counts, *(edit for edits, index in zip(lists, chosen, strict=True) for edit in edits[index]))

    def _counts(self) -> Iterator[tuple[tuple[str, ...], PreTrainedConfig, list[Edit]]]:
        """Where the number of layers could be said: the usual name first, then any one, then several together."""
        num_layers, shorter = self._shortening.num_layers, len(self._shortening.kept)
        found = []
        for path, config, fields in self._configs:
            usual = config.attribute_map.get(_COUNT, _COUNT)
            keys = [key for key, value in fields.items() if is_whole_number(value) and value == num_layers]
            edits = [Edit(path, key, shorter) for key in sorted(keys, key=lambda key, usual=usual: key != usual)]
            found.append((path, config, edits))
        for path, config, edits in found:
            yield from ((path, config, [edit]) for edit in edits[:1])
        for path, config, edits in found:
            yield from ((path, config, [edit]) for edit in edits[1:])
        for path, config, fields in self._configs:
            for key, value in fields.items():  # of a model in stages
                if _is_list(value) and all(map(is_whole_number, value)) and key not in _BASE:
                    stages = [place for place, entry in enumerate(value) if entry == num_layers]
                    changed = ([*value[:place], shorter, *value[place + 1 :]] for place in stages)
                    yield from ((path, config, [Edit(path, key, depths)]) for depths in changed)
        for path, config, edits in found:
            yield from ((path, config, list(pair)) for pair in combinations(edits, 2))
            yield path, config, []  # they are only listed

    def _lists(
        self, path: tuple[str, ...], config: PreTrainedConfig, counts: Sequence[str]
    ) -> Iterator[list[list[Edit]]]:
        """For each list that could be about layers: how it could change, the likeliest first."""
        kept, num_layers = self._shortening.kept, self._shortening.num_layers
        if isinstance(config, PlacedConfig):
            depths = config.placement_depths or list(range(1, num_layers + 1))
            total = config.placement_num_layers or num_layers
            own = {"placement_depths": [depths[index] for index in kept], "placement_num_layers": total}
            yield [[Edit(path, key, value) for key, value in own.items()]]
        for key, value in _at(self._fields, path).items():
            if key in _BASE or key in counts or key.startswith(("_", "placement_")) or key.endswith(_NOT_OF_LAYERS):
                continue
            if _is_list(value) and len(value) == num_layers:
                yield [[Edit(path, key, [value[index] for index in kept])], []]
            elif _is_list(value) and value and all(map(is_whole_number, value)) and len(set(value)) == len(value):
                ways = [
                    [Edit(path, key, [kept.index(entry - first) + first for entry in value if entry - first in kept])]
                    for first in (0, 1)
                    if all(first <= entry < num_layers + first for entry in value)
                ]
                yield [*ways, []]
            elif _is_list(value) and value and all(isinstance(entry, str) for entry in value):
                yield [[], [Edit(path, key, None)]]  # names of stages, made anew
            elif isinstance(value, dict) and value and all(_is_index(entry, num_layers) for entry in value):
                left = {kept.index(int(entry)): value[entry] for entry in value if int(entry) in kept}
                yield [[Edit(path, key, left)], []]

    def _rules(self, edits: tuple[Edit, ...]) -> Iterator[tuple[Edit, ...]]:
        """Further edits, of whole numbers that decide the kind of each layer (a period, an offset, the first k).

        First one after another, each time the one that brings the described model nearest; then two at a time.
        """
        fields = [*self._deciding()]
        values = range(self._shortening.num_layers + 1)
        near, chosen = self._distance(edits), edits
        while fields:
            steps = [(*chosen, Edit(path, key, value)) for path, key in fields for value in values]
            best = min(steps, key=self._distance)
            if self._distance(best) >= near:
                break
            near, chosen = self._distance(best), best
            yield chosen
        pairs = [
            (
                abs(one - self._value(first)) + abs(two - self._value(second)),
                (*edits, Edit(*first, one), Edit(*second, two)),
            )
            for first, second in combinations(fields, 2)
            for one, two in product(values, repeat=2)
        ]
        self._tries = 0
        for _, both in sorted(pairs, key=lambda pair: pair[0]):
            if self._tries > _MOST_TRIES:
                return
            yield both

    def _value(self, field: tuple[tuple[str, ...], str]) -> int:
        return _at(self._fields, field[0])[field[1]]

    def _deciding(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Fields that, changed by one, give some layers the parts of others, and change nothing else."""
        stack = self._shortening.stack
        kinds = layer_kinds(self._whole, stack)
        known = frozenset().union(*kinds.values())
        around = outside(self._whole, stack)
        for path, _, fields in self._configs:
            for key, value in fields.items():
                if not is_whole_number(value) or not 0 <= value <= 2 * self._shortening.num_layers or key in _BASE:
                    continue
                for change in (1, -1):
                    other = self._build((Edit(path, key, value + change),))
                    if other is None or outside(other, stack) != around:
                        continue
                    changed = layer_kinds(other, stack)
                    if (
                        len(changed) == len(kinds)
                        and changed != kinds
                        and frozenset().union(*changed.values()) <= known
                    ):
                        yield path, key
                        break

    def _distance(self, edits: tuple[Edit, ...]) -> float:
        """How many differences there are between what such a config describes and what is left."""
        name = repr(edits)
        if name not in self._distances:
            described = self._build(edits)
            if described is None or len(layer_kinds(described, self._shortening.stack)) != len(self._shortening.kept):
                self._distances[name] = float("inf")
            else:
                differences = self._shorter.differences(described)
                self._distances[name] = len(differences)
                if self._closest is None or len(differences) < self._closest[0]:
                    self._closest = (len(differences), edits, differences)
        return self._distances[name]

    def _build(self, edits: tuple[Edit, ...]) -> Structure | None:
        self._tries += 1
        try:
            return structure_of(self._described(edits))
        except Exception:  # a config that is not valid may raise anything
            return None

    def _described(self, edits: tuple[Edit, ...]) -> PreTrainedModel:
        return describe(type(self._model), edited(self._fields, edits), self._model.config)

    def _refusal(self) -> str:
        if self._closest is None:
            return (
                f"no config of a {self._kind} was found whose {self._shortening.stack} has "
                f"{len(self._shortening.kept)} blocks, so a model of fewer layers could not be saved"
            )
        _, _, differences = self._closest
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        return (
            f"no config of a {self._kind} describes the pruned model: at best {differences[0]}{more}. The "
            "rule by which the config sets each layer from its place cannot express this"
        )


_BASE = frozenset(vars(PreTrainedConfig()))
"""Fields of every config."""
_NOT_OF_LAYERS = ("token_id", "token_ids", "_index")
"""How fields are called that are about tokens, whatever their length."""


def edited(fields: dict[str, Any], edits: Sequence[Edit]) -> dict[str, Any]:
    """Return the fields of a config, nested as they are, with edits."""
    changed = dict(fields)
    for edit in edits:
        if edit.path:
            first, *rest = edit.path
            changed[first] = edited(changed[first], [Edit(tuple(rest), edit.key, edit.value)])
        else:
            changed[edit.key] = edit.value
    return changed


def _walk(config: PreTrainedConfig, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], PreTrainedConfig]]:
    """A config and those in it, that of text first: most blocks are of text."""
    yield path, config
    text = config.get_text_config()
    inner = [(name, value) for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)]
    for name, value in sorted(inner, key=lambda item: item[1] is not text):
        yield from _walk(value, (*path, name))


def _at(fields: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    for name in path:
        fields = fields[name]
    return fields


def _is_index(key: Any, num_layers: int) -> bool:
    return str(key).isdecimal() and int(key) < num_layers


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _by_likelihood(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """The first way for every list; then another for one of them, and so on."""
    ways = product(*map(range, lengths))
    return sorted(ways, key=lambda chosen: (sum(map(bool, chosen)), chosen))[:64]
