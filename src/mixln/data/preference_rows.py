"""Rows of preferences: a prompt, the answer that was preferred, and the other one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from mixln.data.conversations import Message
from mixln.data.example_data import source_rows
from mixln.errors import InputError

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt.

    Attributes:
        prompt: a text, or the messages of a conversation up to the answer.
        chosen: the preferred answer: a text, or messages.
        rejected: the other one.
        place: of its row, `file:line`.
    """

    prompt: str | Sequence[Message]
    chosen: str | Sequence[Message]
    rejected: str | Sequence[Message]
    place: str

    @property
    def prompt_key(self) -> str:
        """What is equal for equal prompts: its text without regard to case and white space."""
        return _words(self.prompt)

    @property
    def has_empty_answer(self) -> bool:
        """Whether there is nothing in an answer, or in a turn of the assistant in it."""
        turns: list[str] = []
        for answer in (self.chosen, self.rejected):
            if isinstance(answer, str):
                turns.append(answer)
            else:
                turns += [message["content"] for message in answer if message["role"] == "assistant"]
        return not all(turn.strip() for turn in turns)

    @property
    def has_equal_answers(self) -> bool:
        """Whether both answers are the same, without regard to white space around them."""
        return exact_answer(self.chosen) == exact_answer(self.rejected)

    @property
    def answers(self) -> tuple[str | Sequence[Message], str | Sequence[Message]]:
        """Chosen and rejected."""
        return self.chosen, self.rejected


def read_pairs(source: str) -> list[Pair]:
    """Read the pairs of a source.

    A row has a prompt, chosen and rejected; or chosen and rejected alone, dialogues that begin alike: lists of
    messages, or texts with turns `\\n\\nHuman:` and `\\n\\nAssistant:`, as in hh-rlhf (Bai et al. 2022).

    Raises:
        InputError: there are none, or a row is no pair; names the place.
    """
    pairs = [pair_of_row(row, place) for place, row in source_rows(source)]
    if not pairs:
        raise InputError(f"{source} holds no pairs. Give a file with a prompt, chosen and rejected in each line")
    return pairs


def pair_of_row(row: Mapping[str, Any], place: str) -> Pair:
    """Return the pair that a row is; see `read_pairs`.

    Raises:
        InputError: it is none; names the place.
    """
    for name in ("chosen", "rejected"):
        if name not in row:
            raise InputError(
                f"{place} has no {name}. A pair has a prompt, chosen and rejected; or chosen and rejected dialogues"
            )
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise InputError(f"{place}: chosen and rejected must be two texts, or two lists of messages")
    if isinstance(chosen, list):
        return _of_messages(prompt, chosen, rejected, place)
    if prompt is None:
        return _of_messages(None, dialogue_messages(chosen, place), dialogue_messages(rejected, place), place)
    if isinstance(prompt, list):
        _check_messages(prompt, place)
    elif not isinstance(prompt, str):
        raise InputError(f"{place}: the prompt must be a text or a list of messages, not {type(prompt).__name__}")
    pair = Pair(prompt, chosen, rejected, place)
    _check_answers(pair)
    return pair


def _of_messages(prompt: Any, chosen: list[Any], rejected: list[Any], place: str) -> Pair:
    for messages in (chosen, rejected, *([prompt] if isinstance(prompt, list) else [])):
        _check_messages(messages, place)
    common = len(list(takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False))))
    if isinstance(prompt, list):
        before, start = prompt, 0
    elif isinstance(prompt, str) and common == 0:
        before, start = [{"role": "user", "content": prompt}], 0
    else:  # the prompt is what both begin with; a pair of equal answers has its last turn as the answer
        start = min(common, len(chosen) - 1, len(rejected) - 1)
        # an answer begins with a turn of the assistant
        while start > 0 and chosen[start].get("role") != "assistant":
            start -= 1
        before = chosen[:start]
    if not before:
        raise InputError(
            f"{place} has no prompt: chosen and rejected have no turn in common before their answers. Give a prompt"
        )
    pair = Pair(before, chosen[start:], rejected[start:], place)
    _check_answers(pair)
    return pair


def dialogue_messages(text: str, place: str) -> list[dict[str, str]]:
    """Return the messages of a dialogue `\\n\\nHuman: ...\\n\\nAssistant: ...`.

    Raises:
        InputError: it does not begin with such a turn; names the place.
    """
    text = text if text.startswith("\n\n") else f"\n\n{text.lstrip()}"
    marks = list(_TURN.finditer(text))
    if not marks or marks[0].start() != 0:
        raise InputError(
            f"{place} has no prompt, and its answers are no dialogues that begin with 'Human:'. Give every row a "
            "prompt, chosen and rejected"
        )
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return [
        {"role": _ROLES[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]


def _check_messages(messages: Any, place: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{place}: a conversation must be a list of {{role, content}} with at least one")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise InputError(f"{place}: a message must have a role and a content")
        if not isinstance(message["content"], str):
            raise InputError(f"{place}: the content of a message must be a text")


def _check_answers(pair: Pair) -> None:
    for name, answer in zip(("chosen", "rejected"), pair.answers, strict=True):
        if not isinstance(answer, str) and answer[-1].get("role") != "assistant":
            raise InputError(f"{pair.place}: the {name} dialogue ends with a turn that is not the assistant's")
    if not _words(pair.prompt):
        raise InputError(f"{pair.place}: the prompt is empty. Leave the row out")


def exact_answer(answer: str | Sequence[Message]) -> Any:
    """Return what is equal for equal answers, without regard to white space around them."""
    if isinstance(answer, str):
        return answer.strip()
    return tuple((message["role"], message["content"].strip()) for message in answer)


def _words(text: str | Sequence[Message]) -> str:
    if not isinstance(text, str):
        text = "\n".join(str(message["content"]) for message in text)
    return " ".join(text.split()).casefold()
