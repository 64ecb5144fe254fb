"""The items of a multiple-choice task, and what a constant answer scores on them: no model, plain data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixln.errors import InputError

Picks = list[list[int]]
"""For each item the options (from 0) that are picked: one, several if they are tied, none if there is no answer."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        options: the texts of the options.
        gold: indices of the right ones.
        prompt: what stands before all options; None: each option has a prompt of its own.
    """

    options: list[str]
    gold: list[int]
    prompt: str | None


@dataclass(frozen=True)
class Constant:
    """A way to answer without having understood anything.

    Attributes:
        name: in words, such as `always the first option`.
        picks: what it answers.
    """

    name: str
    picks: Picks


def read_items(task: Any, samples: Sequence[Mapping[str, Any]]) -> list[Item]:
    """Return the items of samples, in their order.

    Args:
        task: of lm-evaluation-harness, of multiple choice.
        samples: what it has logged of any model.

    Raises:
        InputError: the right answer of an item is none of its options.
    """
    items: list[Item] = []
    for sample in samples:
        document = sample["doc"]
        options = list(map(str, task.doc_to_choice(document)))
        gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
        indices = [options.index(one) if one in options else one for one in _as_list(gold)]
        right = [one for one in indices if isinstance(one, int) and 0 <= one < len(options)]
        if not right:
            raise InputError(
                f"item {sample['doc_id']} of {task.config.task}: the right answer {gold!r} is not one of its "
                f"{len(options)} options. Correct the item, or leave it out"
            )
        items.append(Item(options, right, None if task.multiple_input else sample["arguments"][0][0]))
    return items


def credits(picks: Picks, gold: Sequence[Sequence[int]]) -> list[float]:
    """What each item counts: the share of the picked options that are right; 0 without an answer."""
    return [
        sum(one in right for one in picked) / len(picked) if picked else 0.0
        for picked, right in zip(picks, gold, strict=True)
    ]


def constants(items: Sequence[Item]) -> list[Constant]:
    """The constant answers that a model must beat, computed from the items alone.

    - chance: any option, each as often;
    - always the first option: what argmax gives for scores that are all the same, or NaN;
    - the most frequent answer: always the option, by its place, that is right most often in these items. Where all
      items have the same options (yes and no), that is the majority class. It is chosen by the right answers, so it
      flatters a little;
    - always the shortest option, by its characters;
    - always the option that repeats the prompt most: the largest share of its words that the prompt has.

    Options that are tied are each picked in equal shares.
    """
    places = Counter(place for item in items for place in item.gold)
    frequent = max(places, key=lambda place: (places[place], -place))
    found = [
        Constant("chance", [list(range(len(item.options))) for item in items]),
        Constant("always the first option", [[0] for _ in items]),
        Constant(
            _frequent_name(items, frequent), [[frequent] if frequent < len(item.options) else [] for item in items]
        ),
        Constant("always the shortest option", [_least(list(map(len, item.options))) for item in items]),
    ]
    if all(item.prompt is not None for item in items):
        found.append(Constant("always the option that repeats the prompt most", [_repeating(item) for item in items]))
    return found


def _frequent_name(items: Sequence[Item], place: int) -> str:
    labels = {tuple(item.options) for item in items}
    shown = repr(labels.pop()[place]) if len(labels) == 1 else f"option {place + 1}"
    return f"always the most frequent answer ({shown})"


def _repeating(item: Item) -> list[int]:
    prompt = set(_words(item.prompt or ""))
    shares = [sum(word in prompt for word in words) / max(1, len(words)) for words in map(_words, item.options)]
    return _least([-share for share in shares])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _least(values: Sequence[float]) -> list[int]:
    return [place for place, value in enumerate(values) if value == min(values)]


def _as_list(gold: Any) -> list[Any]:
    return list(gold) if isinstance(gold, list | tuple) else [gold]
