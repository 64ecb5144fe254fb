"""Prompts that a policy is to answer: rows of the forms that people have, split by prompt, in a model's tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mixln.data.conversations import Message, conversation_text
from mixln.data.example_data import source_rows
from mixln.data.preference_rows import dialogue_messages, pair_of_row
from mixln.data.prompts import INSTRUCTION, PromptTemplate
from mixln.data.splitting import digest, is_in_share
from mixln.errors import InputError
from mixln.models.encoding import DocumentEncoder


@dataclass(frozen=True)
class Prompt:
    """What is to be answered.

    Attributes:
        text: as it is; empty, if it is a conversation.
        messages: of a conversation, whose last turn is not the assistant's; None: it is a text.
        place: of its row, `file:line`.
    """

    text: str
    messages: tuple[Message, ...] | None
    place: str

    @property
    def key(self) -> str:
        """What tells it from other prompts, whatever the tokenizer: equal prompts have equal ones."""
        return self.text if self.messages is None else json.dumps(self.messages, sort_keys=True)

    def shown(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text that a model with this tokenizer reads.

        Raises:
            InputError: the chat template refuses the conversation.
        """
        if self.messages is None:
            return self.text
        return conversation_text(list(self.messages), self.place, tokenizer, add_generation_prompt=True)

    @property
    def value(self) -> str | list[Message]:
        """The text or the messages."""
        return self.text if self.messages is None else list(self.messages)

    @property
    def is_rendered(self) -> bool:
        """Whether a chat template writes its special tokens."""
        return self.messages is not None


@dataclass(frozen=True)
class PromptCounts:
    """What became of the rows of prompts.

    Attributes:
        read: rows.
        repeated: rows whose prompt has occurred before, or is held out; they are left out.
        dropped: prompts that leave no room for a completion and were left out.
        train: prompts to train on.
        held_out: prompts that are completed before and after, and never trained on.
        left: held-out prompts beyond those that are completed, which are not used at all.
    """

    read: int = 0
    repeated: int = 0
    dropped: int = 0
    train: int = 0
    held_out: int = 0
    left: int = 0


@dataclass(frozen=True)
class PromptRequest:
    """Which prompts, and which of them are held out.

    Attributes:
        sources: files of JSON lines, folders of them, or `hf:NAME[@REVISION][:CONFIG[:SPLIT]]`.
        validation_sources: of prompts that are held out; empty: a part of `sources`.
        validation_fraction: that part, by a hash of the prompt.
        max_validation_prompts: as many of them are completed.
        template: of rows with fields of their own; None: by their fields.
    """

    sources: Sequence[str]
    validation_sources: Sequence[str] = ()
    validation_fraction: float = 0.1
    max_validation_prompts: int = 500
    template: PromptTemplate | None = None


@dataclass(frozen=True, eq=False)
class PromptData:
    """Prompts, each once.

    Attributes:
        train: to train on.
        held_out: to be completed before and after.
        counts: what became of the rows.
    """

    train: list[Prompt]
    held_out: list[Prompt]
    counts: PromptCounts

    def fingerprint(self) -> str:
        """Equal for two runs with the same prompts in the same order."""
        keys = [[prompt.key for prompt in part] for part in (self.train, self.held_out)]
        return hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:32]


def read_prompts(request: PromptRequest) -> PromptData:
    """Read prompts and split them. Each is taken once, however often it occurs, and a held-out one never trained on.

    Args:
        request: which.

    Raises:
        InputError: a row is no prompt, or one side has too few.
    """
    if not request.validation_sources and not 0 < request.validation_fraction < 1:
        raise InputError(
            f"`validation_fraction` must be above 0 and below 1, not {request.validation_fraction}, or prompts to "
            "validate on be given: what is trained on shows nothing"
        )
    fraction = 0.0 if request.validation_sources else request.validation_fraction
    held_out: dict[str, Prompt] = {}
    train: dict[str, Prompt] = {}
    read = 0
    for sources, share in ((request.validation_sources, 1.0), (request.sources, fraction)):
        for source in sources:
            for prompt in _prompts(source, request.template):
                read += 1
                if prompt.key in held_out or prompt.key in train:
                    continue
                side = held_out if is_in_share(prompt.key, share) else train
                side[prompt.key] = prompt
    # by their digests: which ones are completed does not hang on the order of the rows
    chosen = sorted(held_out.values(), key=lambda prompt: digest(prompt.key))[: request.max_validation_prompts]
    counts = PromptCounts(
        read,
        read - len(train) - len(held_out),
        0,
        len(train),
        len(chosen),
        len(held_out) - len(chosen),
    )
    return _checked(PromptData(list(train.values()), chosen, counts))


def fitting_prompts(data: PromptData, fits: Sequence[tuple[PreTrainedTokenizerBase, int]], *, drop: bool) -> PromptData:
    """Return the prompts that leave room for a completion in every model, so that all are asked the same.

    Args:
        data: all prompts.
        fits: of each model its tokenizer, and how many tokens a prompt may have.
        drop: leave others out and count them.

    Raises:
        InputError: there are others, and they are not to be dropped; or one side has too few prompts left.
    """
    every = [*data.train, *data.held_out]
    too_long: dict[int, int] = {}
    for tokenizer, room in fits:
        for index, ids in enumerate(prompt_tokens(every, tokenizer)):
            if len(ids) > room:
                too_long[index] = max(len(ids), too_long.get(index, 0))
    if not too_long:
        return data
    if not drop:
        longest = max(too_long, key=lambda index: too_long[index])
        raise InputError(
            f"{len(too_long)} of {len(every)} prompts leave no room for a completion: at most "
            f"{min(room for _, room in fits)} tokens do, and the longest ({every[longest].place}) has "
            f"{too_long[longest]}. Lower `max_new_tokens`, or leave them out: `too_long=drop`"
        )
    border = len(data.train)
    train = [prompt for index, prompt in enumerate(data.train) if index not in too_long]
    held_out = [prompt for index, prompt in enumerate(data.held_out, start=border) if index not in too_long]
    counts = PromptCounts(
        data.counts.read, data.counts.repeated, len(too_long), len(train), len(held_out), data.counts.left
    )
    return _checked(PromptData(train, held_out, counts))


def prompt_tokens(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens that a model reads: those that fine-tuning puts before an answer.

    A text begins as the tokenizer begins one, and special tokens that are spelled in it are text; a chat template
    writes its own, which are tokens.

    Args:
        prompts: to encode.
        tokenizer: of the model.

    Raises:
        InputError: a chat template refuses a conversation.
    """
    texts = [prompt.shown(tokenizer) for prompt in prompts]
    plain = [index for index, prompt in enumerate(prompts) if not prompt.is_rendered]
    encoder = DocumentEncoder(tokenizer)
    bare = dict(zip(plain, encoder.encode_bare([texts[index] for index in plain]), strict=True)) if plain else {}
    return [
        [*encoder.begin, *bare[index].tolist()]
        if index in bare
        else list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        for index, text in enumerate(texts)
    ]


def _checked(data: PromptData) -> PromptData:
    if not data.counts.read:
        raise InputError("there are no prompts: give a file with one prompt a line")
    if not data.train:
        raise InputError("there is no prompt to train on: give more prompts, or a smaller `validation_fraction`")
    if len(data.held_out) < 2:
        raise InputError(
            f"{len(data.held_out)} prompts are held out, and an interval needs 2: give more prompts, a larger "
            "`validation_fraction`, or prompts to validate on"
        )
    return data


def _prompts(source: str, template: PromptTemplate | None) -> Iterator[Prompt]:
    for place, row in source_rows(source):
        prompt = _prompt(row, place, template)
        if not prompt.key.strip():
            raise InputError(f"{place} has an empty prompt. Leave the row out")
        yield prompt


def _prompt(row: Mapping[str, Any], place: str, template: PromptTemplate | None) -> Prompt:
    if template is not None:
        return Prompt(template.prompt(row, place), None, place)
    if "prompt" in row:
        return _of_value(row["prompt"], place)
    if "messages" in row:
        return _conversation(row["messages"], place)
    if "instruction" in row:
        return Prompt(INSTRUCTION.prompt(row, place), None, place)
    if {"chosen", "rejected"} <= row.keys():  # the same prompt as a reward model is trained on
        return _of_value(pair_of_row(row, place).prompt, place)
    if isinstance(chosen := row.get("chosen"), str | list):
        return _conversation(dialogue_messages(chosen, place) if isinstance(chosen, str) else chosen, place)
    raise InputError(
        f"{place} has the fields {', '.join(sorted(row)) or 'none'}. Known are: prompt; messages; instruction, input; "
        "chosen, as a dialogue. For others, give a template"
    )


def _of_value(value: Any, place: str) -> Prompt:
    if isinstance(value, str):
        return Prompt(value, None, place)
    if isinstance(value, list):
        return _conversation(value, place)
    raise InputError(f"{place}: the prompt must be a text or a list of messages, not {type(value).__name__}")


def _conversation(messages: Any, place: str) -> Prompt:
    """A conversation without the assistant's turns at its end, which are to be written anew."""
    if not isinstance(messages, list) or not all(_is_message(one) for one in messages):
        raise InputError(f"{place}: messages must be a list of {{role, content}}, both of them texts")
    kept = list(messages)
    while kept and kept[-1].get("role") == "assistant":
        kept.pop()
    if not kept:
        raise InputError(f"{place} has no turn before the assistant's: there is nothing to answer. Leave the row out")
    return Prompt("", tuple(kept), place)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(name), str) for name in ("role", "content"))
