"""Examples to fine-tune on: rows of the forms that people have, as text of which some parts are answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mixln.data.prompts import COMPLETION, INSTRUCTION, PromptTemplate
from mixln.errors import InputError
from mixln.models.encoding import DocumentEncoder

Message = Mapping[str, Any]
"""A turn of a conversation, with its `role` and its `content`."""

PLAIN_CHAT = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""The chat template of a tokenizer that has none: `User: ...`, `Assistant: ...`, with the end-of-text token."""


@dataclass(frozen=True)
class Example:
    """A text that a model is trained on.

    Attributes:
        segments: its parts, in order, each with whether it is an answer.
        place: of its row, `file:line`.
        is_rendered: whether a chat template has written its special tokens, and its end.
    """

    segments: list[tuple[str, bool]]
    place: str
    is_rendered: bool = False

    @property
    def prompt(self) -> str:
        """What stands before the first answer."""
        return "".join(text for text, is_answer in self.segments[:1] if not is_answer)


@dataclass(frozen=True, eq=False)
class Tokens:
    """An example in tokens.

    Attributes:
        ids: (tokens,), int64.
        is_answer: (tokens,), bool: which of them are learned.
    """

    ids: np.ndarray
    is_answer: np.ndarray

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)


def example_reader(
    row: Mapping[str, Any], place: str, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate | None
) -> Callable[[Mapping[str, Any], str], Example]:
    """Return what makes an example of each row of a file, by the fields of the first row.

    Args:
        row: the first one.
        place: where it is.
        tokenizer: of the model; writes conversations.
        template: for rows of fields; None: the one that belongs to the fields.

    Raises:
        InputError: rows with these fields are not known.
    """
    if template is not None:
        return lambda row, place: filled(template, row, place)
    if "messages" in row:
        return lambda row, place: conversation(_field(row, "messages", place), 0, place, tokenizer)
    if {"prompt", "completion"} <= row.keys():
        return lambda row, place: _completion(row, place, tokenizer)
    if {"instruction", "output"} <= row.keys():
        return lambda row, place: filled(INSTRUCTION, row, place)
    raise InputError(
        f"{place} has the fields {', '.join(sorted(row)) or 'none'}. Known are: messages; prompt, completion; "
        "instruction, input, output. For others, give a template"
    )


def _field(row: Mapping[str, Any], name: str, place: str) -> Any:
    if name not in row:
        raise InputError(f"{place} has no {name}, which the first row has. Give every row the same fields")
    return row[name]


def _completion(row: Mapping[str, Any], place: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    prompt, completion = _field(row, "prompt", place), _field(row, "completion", place)
    if isinstance(prompt, list) and isinstance(completion, list):  # of messages, as TRL has it
        return conversation([*prompt, *completion], len(prompt), place, tokenizer)
    return filled(COMPLETION, row, place)


def filled(template: PromptTemplate, row: Mapping[str, Any], place: str, *, may_be_empty: bool = False) -> Example:
    """A prompt and its answer, written by a template.

    Args:
        template: of rows with these fields.
        row: the fields.
        place: where they are from, for errors.
        may_be_empty: whether an answer may be empty, which teaches nothing.

    Raises:
        InputError: the row lacks a field, or the answer is empty.
    """
    prompt, answer = template.prompt(row, place), template.answer(row, place)
    if not (may_be_empty or answer.strip()):
        raise InputError(f"{place} has an empty answer: there is nothing to learn. Leave the row out")
    return Example([(prompt, False), (answer, True)], place)


def conversation(
    messages: Any, learned_from: int, place: str, tokenizer: PreTrainedTokenizerBase, *, may_be_empty: bool = False
) -> Example:
    """A conversation as the chat template writes it; the assistant's turns from a message on are answers.

    Args:
        messages: each with a role and a content.
        learned_from: the first message that may be an answer.
        place: where they are from, for errors.
        tokenizer: has the template; without one it is `PLAIN_CHAT`.
        may_be_empty: whether an answer may be empty, which teaches nothing.

    Raises:
        InputError: they are no messages, an answer is empty, or the template cannot write them.
    """
    checked = _checked_messages(messages, len(messages) if may_be_empty else learned_from, place)
    segments: list[tuple[str, bool]] = []
    written = ""
    for number, message in enumerate(checked):
        if message["role"] != "assistant" or number < learned_from:
            continue
        before = _render(checked[:number], place, tokenizer, add_generation_prompt=True)
        behind = _render(checked[: number + 1], place, tokenizer, add_generation_prompt=False)
        if not (before.startswith(written) and behind.startswith(before)):
            raise InputError(
                f"{place}: the chat template of this tokenizer changes earlier turns when a later one follows, so "
                "the answers cannot be found in its text. Give rows of prompt and completion"
            )
        segments += [(before[len(written) :], False), (behind[len(before) :], True)]
        written = behind
    if not segments:
        raise InputError(f"{place} has no turn of the assistant: there is nothing to learn. Leave the row out")
    return Example([(text, is_answer) for text, is_answer in segments if text], place, is_rendered=True)


def _checked_messages(messages: Any, learned_from: int, place: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{place}: messages must be a list of {{role, content}}, not {type(messages).__name__}")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise InputError(f"{place}: a message must have a role and a content")
        if not isinstance(message["content"], str):
            raise InputError(f"{place}: the content of a message must be a text")
        if number >= learned_from and message["role"] == "assistant" and not message["content"].strip():
            raise InputError(f"{place} has an empty answer: there is nothing to learn. Leave the row out")
    return messages


def _render(
    messages: Sequence[Message], place: str, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool
) -> str:
    template: Any = tokenizer.chat_template or PLAIN_CHAT  # typed as what a processor may have
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            chat_template=template,
        )
    except (TemplateError, ValueError) as error:
        raise InputError(f"{place}: the chat template of this tokenizer refuses the conversation: {error}") from error
    assert isinstance(text, str)
    return text


def conversation_text(
    messages: Sequence[Message], place: str, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False
) -> str:
    """Return a conversation as the tokenizer's chat template writes it, or the plain one if it has none.

    An answer may be empty: it need not be one to learn from.

    Args:
        messages: each with a role and a content.
        place: of its row, for messages.
        tokenizer: whose template it is.
        add_generation_prompt: end with what stands before an answer of the assistant.

    Raises:
        InputError: the template refuses them.
    """
    return _render(messages, place, tokenizer, add_generation_prompt=add_generation_prompt)


class ExampleEncoder:
    """Turns examples into tokens, as the model will see them in use.

    A prompt has the tokens that it has alone, since that is what a model is given; an answer is followed by the
    end-of-text token, which is learned too, unless the chat template has written it. A text of fields begins as the
    tokenizer begins a text, and special tokens that are spelled in it are text. A chat template writes them itself.

    Args:
        tokenizer: of the model, with an end-of-text token.

    Attributes:
        apart: examples of which prompt and answer were put into tokens apart, since together a token spans both.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._encoder = DocumentEncoder(tokenizer)
        eos = self._encoder.eos_token_id
        if eos is None:
            raise InputError(
                "the tokenizer has no end-of-text token, so a model cannot learn where answers end. Give one "
                "that has it"
            )
        self._eos = eos
        self.apart = 0

    @property
    def begin(self) -> Sequence[int]:
        """What the tokenizer begins a text with."""
        return self._encoder.begin

    def encode(self, examples: Sequence[Example]) -> list[Tokens]:
        """Return the tokens of each example."""
        return [self._joined(example) for example in examples]

    def _joined(self, example: Example) -> Tokens:
        texts = [text for text, _ in example.segments]
        whole = self._ids(list(accumulate(texts)), example)
        parts = [ids[len(before) :] for before, ids in pairwise([[], *whole])]
        if any(ids[: len(before)] != before for before, ids in pairwise(whole)):
            self.apart += 1
            parts = self._ids(texts, example)
        if not example.is_rendered and whole:
            parts[0] = [*self._encoder.begin, *parts[0]]
        if not example.is_rendered or self._eos not in parts[-1]:
            parts[-1] = [*parts[-1], self._eos]
        learned = [
            self._learned(part) if is_answer else [False] * len(part)
            for part, (_, is_answer) in zip(parts, example.segments, strict=True)
        ]
        return Tokens(
            np.fromiter(chain.from_iterable(parts), dtype=np.int64),
            np.fromiter(chain.from_iterable(learned), dtype=bool),
        )

    def _learned(self, answer: Sequence[int]) -> list[bool]:
        """An answer up to its end: what a chat template writes behind that is no part of it."""
        ends = [place for place, token in enumerate(answer) if token == self._eos]
        last = ends[-1] if ends else len(answer) - 1
        return [place <= last for place in range(len(answer))]

    def _ids(self, texts: Sequence[str], example: Example) -> list[list[int]]:
        if not example.is_rendered:
            return [ids.tolist() for ids in self._encoder.encode_bare(texts)]
        return self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
