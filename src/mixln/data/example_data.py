"""From files of examples to packed rows: read, put into tokens, split, and counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from mixln.announce import announce
from mixln.data.conversations import PLAIN_CHAT, Example, ExampleEncoder, Tokens, example_reader
from mixln.data.corpus_hub import HubCorpus
from mixln.data.example_rows import ExampleRows
from mixln.data.file_formats import is_json_file, read_rows
from mixln.data.prompts import PromptTemplate
from mixln.data.splitting import is_in_share
from mixln.errors import InputError

TooLong = Literal["refuse", "drop", "cut"]
"""What is done with an example that does not fit into a row: end with a message; leave it out; or cut the beginning of
its prompt off, but never anything of an answer. Whatever is left out is counted."""

_HUB = "hf:"


@dataclass(frozen=True)
class ExampleCounts:
    """What became of the examples of a source.

    Attributes:
        read: rows.
        dropped: examples that do not fit into a row and were left out.
        cut: examples whose prompt has lost its beginning.
        apart: examples of which prompt and answer were put into tokens apart.
        validation: examples that are held out.
        shared: of these, examples whose prompt is trained on too.
    """

    read: int = 0
    dropped: int = 0
    cut: int = 0
    apart: int = 0
    validation: int = 0
    shared: int = 0


@dataclass(frozen=True, eq=False)
class ExampleData:
    """Examples ready for training.

    Attributes:
        tokenizer: of the model.
        train: packed rows to train on.
        validation: packed rows of examples that are held out.
        counts: what became of the examples, by their source.
        fingerprint: equal for two runs that see the same tokens, with the same ones learned.
    """

    tokenizer: PreTrainedTokenizerFast
    train: ExampleRows
    validation: ExampleRows
    counts: Mapping[str, ExampleCounts]
    fingerprint: str

    @property
    def largest_token(self) -> int:
        """The largest id in either part."""
        return max(self.train.largest_token, self.validation.largest_token)


@dataclass(frozen=True)
class ExampleRequest:
    """Which examples, and how they become rows.

    Attributes:
        sources: files of JSON lines, folders of them, or `hf:NAME[@REVISION][:CONFIG[:SPLIT]]`.
        validation_sources: of examples that are held out; empty: a part of `sources`.
        validation_fraction: that part, by a hash of the prompt: examples with the same prompt are on the same side.
        weights: of each source: how often an epoch goes through it; parts of it are chosen by a hash.
        template: of rows with fields of their own; None: by their fields.
        sequence_length: tokens of a row.
        too_long: what is done with examples that do not fit.
    """

    sources: Sequence[str]
    validation_sources: Sequence[str] = ()
    validation_fraction: float = 0.05
    weights: Sequence[float] | None = None
    template: PromptTemplate | None = None
    sequence_length: int = 512
    too_long: TooLong = "refuse"


def check_sources(request: ExampleRequest) -> None:
    """Make sure that files of examples are there and begin with one, without reading them.

    Raises:
        InputError: one is not, or its first row lacks a field of the template.
    """
    for source in (*request.sources, *request.validation_sources):
        if source.startswith(_HUB):
            continue  # what is to be fetched is looked at when it is
        place, row = next(source_rows(source), ("", {}))
        if not place:
            raise InputError(f"{source} holds no examples. Give a file with one example a line")
        if request.template is not None:
            request.template.prompt(row, place)
            request.template.answer(row, place)


def prepare_examples(request: ExampleRequest, tokenizer: PreTrainedTokenizerFast) -> ExampleData:
    """Read examples and pack them into rows. They are held in memory.

    Args:
        request: which, and how.
        tokenizer: of the model.

    Raises:
        InputError: a row is no example; an example does not fit into a row, and that is to be refused; weights do not
            fit the sources; or one side has no example.
    """
    weights = [1.0] * len(request.sources) if request.weights is None else request.weights
    if len(weights) != len(request.sources) or any(not weight > 0 for weight in weights):
        raise InputError(f"`weights` must have a positive number for each of the {len(request.sources)} sources")
    if not 0 <= request.validation_fraction < 1:
        raise InputError(f"`validation_fraction` must be at least 0 and below 1, not {request.validation_fraction}")
    if not request.validation_sources and request.validation_fraction == 0:
        raise InputError("nothing is held out: give a `validation_fraction` above 0, or data to validate on")
    train: list[Tokens] = []
    validation: list[Tokens] = []
    trained: set[str] = set()
    counts: dict[str, ExampleCounts] = {}
    for source, weight in zip(request.sources, weights, strict=True):
        fraction = 0.0 if request.validation_sources else request.validation_fraction
        counts[source] = _add(source, weight, fraction, request, tokenizer, train, validation, trained)
    for source in request.validation_sources:
        counts[source] = _add(source, 1.0, 1.0, request, tokenizer, train, validation, trained)
    for part, name in ((train, "to train on"), (validation, "to validate on")):
        if not part:
            raise InputError(f"there is no example {name}: give more examples, or another `validation_fraction`")
    padding = tokenizer.eos_token_id
    assert isinstance(padding, int)  # `ExampleEncoder` refuses others
    learned, held_out = (ExampleRows(part, request.sequence_length, padding) for part in (train, validation))
    key = f"{request.sequence_length}\0{learned.fingerprint()}\0{held_out.fingerprint()}"
    return ExampleData(tokenizer, learned, held_out, counts, hashlib.sha256(key.encode()).hexdigest()[:32])


def _add(
    source: str,
    weight: float,
    validation_fraction: float,
    request: ExampleRequest,
    tokenizer: PreTrainedTokenizerFast,
    train: list[Tokens],
    validation: list[Tokens],
    trained: set[str],
) -> ExampleCounts:
    """Put the examples of a source on their sides, and count them; `trained` gets the prompts that are trained on."""
    encoder = ExampleEncoder(tokenizer)
    examples = list(_examples(source, request.template, tokenizer))
    fitted, dropped, cut = _fit(examples, encoder.encode(examples), request, encoder.begin)
    held_out = shared = 0
    for index, (example, tokens) in enumerate(fitted):
        if is_in_share(example.prompt, validation_fraction):
            validation.append(tokens)
            held_out += 1
            shared += example.prompt in trained
        else:
            # the number is hashed too: of equal prompts some are taken, not all or none
            part = is_in_share(f"{index}\0{example.prompt}", weight % 1)
            train += [tokens] * (int(weight) + part)
            if int(weight) + part:
                trained.add(example.prompt)
    return ExampleCounts(len(examples), dropped, cut, encoder.apart, held_out, shared)


def _examples(source: str, template: PromptTemplate | None, tokenizer: PreTrainedTokenizerFast) -> Iterator[Example]:
    read = None
    for place, row in source_rows(source):
        if read is None:
            if "messages" in row and template is None and not tokenizer.chat_template:
                tokenizer.chat_template = PLAIN_CHAT  # saved with the model, which will be asked in the same form
                announce(("template", "the tokenizer has no chat template: it gets 'User: ...', 'Assistant: ...'"))
            read = example_reader(row, place, tokenizer, template)
        yield read(row, place)
    if read is None:
        raise InputError(f"{source} holds no examples. Give a file with one example a line")


def source_rows(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a file of JSON lines, of a folder of them, or of a dataset `hf:NAME...`, each with its place.

    Raises:
        InputError: there is none, it cannot be read, or a row is no JSON object.
    """
    if source.startswith(_HUB):
        yield from HubCorpus(source.removeprefix(_HUB), "").rows()
        return
    path = Path(source).expanduser()
    files = sorted(one for one in path.rglob("*") if is_json_file(one)) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no file of JSON lines (.jsonl, .jsonl.gz, ...). Give one")
    for file in files:
        yield from read_rows(file)


def _fit(
    examples: Sequence[Example], encoded: Sequence[Tokens], request: ExampleRequest, begin: Sequence[int]
) -> tuple[list[tuple[Example, Tokens]], int, int]:
    """Return the examples that fit into a row, how many do not, and how many were cut."""
    room = request.sequence_length + 1
    too_long = [index for index, tokens in enumerate(encoded) if len(tokens) > room]
    if too_long and request.too_long == "refuse":
        longest = max(too_long, key=lambda index: len(encoded[index]))
        raise InputError(
            f"{len(too_long)} of {len(examples)} examples do not fit into a row of {request.sequence_length} tokens; "
            f"the longest ({examples[longest].place}) has {len(encoded[longest])}. Raise the `sequence_length`, or say "
            "what to do: `too_long=drop` leaves them out, `too_long=cut` cuts off the beginning of their prompts"
        )
    fitted: list[tuple[Example, Tokens]] = []
    dropped = cut = 0
    for example, tokens in zip(examples, encoded, strict=True):
        if len(tokens) <= room:
            fitted.append((example, tokens))
        elif request.too_long == "cut" and (shorter := _cut(tokens, room, begin)) is not None:
            fitted.append((example, shorter))
            cut += 1
        else:
            dropped += 1
    return fitted, dropped, cut


def _cut(tokens: Tokens, room: int, begin: Sequence[int]) -> Tokens | None:
    """Leave out tokens at the beginning of the prompt, behind what a text begins with; None: there are too few."""
    excess = len(tokens) - room
    start = len(begin) if tokens.ids[: len(begin)].tolist() == list(begin) else 0
    prompt = int(np.argmax(tokens.is_answer))
    if prompt - start <= excess:  # a token of the prompt stays, from which the answer is predicted
        return None
    kept = np.r_[0:start, start + excess : len(tokens)]
    return Tokens(tokens.ids[kept], tokens.is_answer[kept])
