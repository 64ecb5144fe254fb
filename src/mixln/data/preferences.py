"""Pairs of answers to a prompt, of which one was preferred: read, written as a model sees them, and split by prompt."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from mixln.data.conversations import PLAIN_CHAT, Example, ExampleEncoder, Message, Tokens, conversation, filled
from mixln.data.preference_rows import Pair, exact_answer, read_pairs
from mixln.data.prompts import COMPLETION, PromptTemplate
from mixln.data.splitting import digest
from mixln.errors import InputError

CHAT = "chat"
"""The form in which a tokenizer's chat template writes prompt and answer."""

_HASH_SPACE = 2**64


@dataclass(frozen=True)
class PreferenceCounts:
    """What became of the pairs.

    Attributes:
        read: rows.
        empty: pairs with an empty answer, left out.
        identical: pairs whose answers are the same, left out.
        too_long: pairs that are longer than the limit, left out.
        cut: pairs whose prompt has lost its beginning.
        shared: pairs left out of training since their prompt is held out.
        contradicted: pairs that stand there the other way round too; they stay.
        apart: texts whose prompt and answer were put into tokens apart.
    """

    read: int = 0
    empty: int = 0
    identical: int = 0
    too_long: int = 0
    cut: int = 0
    shared: int = 0
    contradicted: int = 0
    apart: int = 0


@dataclass(frozen=True, eq=False)
class EncodedPair:
    """A pair in tokens, as the model reads it: prompt, answer and the end token, which is the last.

    Attributes:
        chosen: (tokens,), int64.
        rejected: the same.
        chosen_length: tokens of the answer, the end token included.
        rejected_length: the same.
        prompt_key: equal for pairs with one prompt.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_length: int
    rejected_length: int
    prompt_key: str


@dataclass(frozen=True, eq=False)
class PreferenceData:
    """Pairs ready for training.

    Attributes:
        train: to learn.
        held_out: to measure on; no prompt is on both sides.
        counts: what became of the pairs.
        form: how prompts and answers were written; see `AnswerWriter`.
        fingerprint: equal for two runs that see the same tokens.
    """

    train: list[EncodedPair]
    held_out: list[EncodedPair]
    counts: PreferenceCounts
    form: PromptTemplate | Literal["chat"]
    fingerprint: str = field(default="")


@dataclass(frozen=True)
class PreferenceRequest:
    """Which pairs, and how they are prepared.

    Attributes:
        sources: files of JSON lines, folders of them, or `hf:NAME[@REVISION][:CONFIG[:SPLIT]]`.
        validation_sources: of pairs that are held out; empty: a part of `sources`.
        validation_fraction: that part of the prompts, by a hash of each.
        form: how prompts and answers become one text; None: by the pairs, see `choose_form`.
        limit: tokens of a text at most, the end token included.
        too_long: what is done with longer ones: `drop` leaves the pair out, `cut` cuts off the beginning of the prompt,
            `refuse` is an error.
        unusable: what is done with pairs that have an empty answer, or two equal ones, which teach nothing.
    """

    sources: Sequence[str]
    validation_sources: Sequence[str] = ()
    validation_fraction: float = 0.1
    form: PromptTemplate | Literal["chat"] | None = None
    limit: int = 512
    too_long: Literal["drop", "cut", "refuse"] = "drop"
    unusable: Literal["drop", "refuse"] = "refuse"


def choose_form(pairs: Sequence[Pair]) -> PromptTemplate | Literal["chat"]:
    """Return how prompts and answers become one text, where nobody has said.

    As they are, if they are texts with white space between them, so that one goes on where the other ends; else as a
    conversation, by the chat template of the tokenizer.
    """
    return COMPLETION if 2 * sum(map(_is_spaced, pairs)) > len(pairs) else CHAT


class AnswerWriter:
    """Writes prompt and answer as one text, in the tokens that a reward model reads: the end token is the last.

    Args:
        tokenizer: of the model. If the form is a conversation and it has no chat template, it gets a plain one, which
            is saved with it.
        form: a template, which is given the fields `prompt` and `instruction` (the prompt), `completion` and `output`
            (the answer); or `chat`, for the chat template of the tokenizer.

    Raises:
        InputError: the tokenizer has no end-of-text token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: PromptTemplate | Literal["chat"]) -> None:
        self.form = form
        self._tokenizer = tokenizer
        if form == CHAT and not tokenizer.chat_template:
            tokenizer.chat_template = PLAIN_CHAT
        self._encoder = ExampleEncoder(tokenizer)
        end = tokenizer.eos_token_id
        assert isinstance(end, int)  # the encoder refuses others
        self._end = end

    @property
    def begin(self) -> Sequence[int]:
        """What a text begins with."""
        return self._encoder.begin

    @property
    def apart(self) -> int:
        """Texts so far whose prompt and answer were put into tokens apart, since together a token spans both."""
        return self._encoder.apart

    def encode(
        self,
        pairs: Sequence[tuple[str | Sequence[Message], str | Sequence[Message], str]],
        *,
        may_be_empty: bool = False,
    ) -> list[Tokens]:
        """Return prompts with their answers in tokens; what a chat template writes behind the end token is left out.

        Args:
            pairs: prompt, answer, and the place for errors.
            may_be_empty: whether an answer may be empty.

        Raises:
            InputError: an answer is empty, or the form cannot write it.
        """
        found = self._encoder.encode([self._write(*pair, may_be_empty) for pair in pairs])
        return [self._ended(tokens) for tokens in found]

    def _write(
        self, prompt: str | Sequence[Message], answer: str | Sequence[Message], place: str, may_be_empty: bool
    ) -> Example:
        if not isinstance(self.form, str):
            if not isinstance(prompt, str) or not isinstance(answer, str):
                raise InputError(
                    f"{place} is a conversation, which the template {self.form.name} cannot write: leave the template "
                    "out, and the tokenizer's chat template does"
                )
            fields = {"prompt": prompt, "instruction": prompt, "completion": answer, "output": answer}
            return filled(self.form, fields, place, may_be_empty=may_be_empty)
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        behind = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)
        return conversation([*before, *behind], len(before), place, self._tokenizer, may_be_empty=may_be_empty)

    def _ended(self, tokens: Tokens) -> Tokens:
        last = int(np.flatnonzero(tokens.ids == self._end)[-1]) + 1
        return Tokens(tokens.ids[:last], tokens.is_answer[:last])


def prepare_preferences(request: PreferenceRequest, tokenizer: PreTrainedTokenizerBase) -> PreferenceData:
    """Read pairs, put them into tokens, and split them by prompt. They are held in memory.

    Args:
        request: which, and how.
        tokenizer: of the model; it may get a chat template, see `AnswerWriter`.

    Raises:
        InputError: a row is no pair; pairs are identical or too long, and that is to be refused; or one side would have
            no pair.
    """
    training, further = (
        [pair for source in sources for pair in read_pairs(source)]
        for sources in (request.sources, request.validation_sources)
    )
    form = request.form or choose_form(training)
    writer = AnswerWriter(tokenizer, form)
    counts = PreferenceCounts(read=len(training) + len(further), contradicted=_contradicted([*training, *further]))
    usable, counts = _usable((training, further), counts, request)
    sides: list[list[EncodedPair]] = []
    for pairs in usable:
        encoded, too_long, cut = _encode(pairs, writer, request)
        counts = replace(counts, too_long=counts.too_long + too_long, cut=counts.cut + cut)
        sides.append(encoded)
    learned, held_out = sides
    if request.validation_sources:
        held = {pair.prompt_key for pair in held_out}
    else:
        held = _held_out({pair.prompt_key for pair in learned}, request.validation_fraction)
        held_out = [pair for pair in learned if pair.prompt_key in held]
    train = [pair for pair in learned if pair.prompt_key not in held]
    counts = replace(counts, apart=writer.apart)
    if request.validation_sources:
        counts = replace(counts, shared=len(learned) - len(train))
    for part, what in ((train, "to learn"), (held_out, "to measure on")):
        if not part:
            raise InputError(
                f"no pair is left {what}: of {counts.read}, {counts.empty} have an empty answer, {counts.identical} "
                f"have equal answers, {counts.too_long} are longer than {request.limit} tokens and {counts.shared} "
                "have a prompt that is held out. Give more pairs, or a larger `sequence_length`"
            )
    return PreferenceData(train, held_out, counts, form, _fingerprint(train, held_out))


def _usable(
    sides: Sequence[Sequence[Pair]], counts: PreferenceCounts, request: PreferenceRequest
) -> tuple[list[list[Pair]], PreferenceCounts]:
    """Return the pairs of each side that something can be learned of, and count the others.

    Raises:
        InputError: there are others, and that is to be refused.
    """
    faults: dict[str, list[Pair]] = {"an empty answer": [], "two equal answers": []}
    usable: list[list[Pair]] = []
    for pairs in sides:
        usable.append([])
        for pair in pairs:
            if pair.has_empty_answer:
                faults["an empty answer"].append(pair)
            elif pair.has_equal_answers:
                faults["two equal answers"].append(pair)
            else:
                usable[-1].append(pair)
    counts = replace(counts, empty=len(faults["an empty answer"]), identical=len(faults["two equal answers"]))
    if request.unusable == "refuse" and (found := {what: pairs for what, pairs in faults.items() if pairs}):
        words = " and ".join(f"{len(pairs)} with {what} (first: {pairs[0].place})" for what, pairs in found.items())
        raise InputError(
            f"of {counts.read} pairs there are {words}: nothing can be learned of them. Leave them out, or say "
            "`unusable=drop`, which does, and counts them"
        )
    return usable, counts


def _is_spaced(pair: Pair) -> bool:
    """Whether white space stands between the prompt and both answers, which are texts."""
    prompt, *answers = pair.prompt, *pair.answers
    if not isinstance(prompt, str):
        return False
    return prompt[-1:].isspace() or all(isinstance(answer, str) and answer[:1].isspace() for answer in answers)


def _contradicted(pairs: Sequence[Pair]) -> int:
    """How many pairs stand there the other way round too."""
    keys = [(pair.prompt_key, exact_answer(pair.chosen), exact_answer(pair.rejected)) for pair in pairs]
    there = {key for key in keys if key[1] != key[2]}
    return sum((prompt, rejected, chosen) in there for prompt, chosen, rejected in keys)


def _encode(
    pairs: Sequence[Pair], writer: AnswerWriter, request: PreferenceRequest
) -> tuple[list[EncodedPair], int, int]:
    """Return the pairs in tokens, how many were left out as too long, and how many were cut."""
    chosen, rejected = (
        writer.encode([(pair.prompt, pair.answers[side], pair.place) for pair in pairs]) for side in (0, 1)
    )
    found: list[EncodedPair] = []
    longest = Counter[str]()
    too_long = cut = 0
    for pair, *both in zip(pairs, chosen, rejected, strict=True):
        excess = max(len(tokens) for tokens in both) - request.limit
        if excess > 0:
            longest[pair.place] = excess + request.limit
            shorter = [_without_beginning(tokens, excess, writer.begin) for tokens in both]
            if request.too_long != "cut" or not all(shorter):
                too_long += 1
                continue
            both = [tokens for tokens in shorter if tokens is not None]
            cut += 1
        good, bad = both
        lengths = int(good.is_answer.sum()), int(bad.is_answer.sum())
        found.append(EncodedPair(good.ids, bad.ids, *lengths, pair.prompt_key))
    if longest and request.too_long == "refuse":
        (place, length), *_ = longest.most_common(1)
        raise InputError(
            f"{len(longest)} of {len(pairs)} pairs are longer than {request.limit} tokens; the longest ({place}) has "
            f"{length}. Raise `sequence_length`, or say what to do: `too_long=drop` leaves them out, `too_long=cut` "
            "cuts off the beginning of their prompts"
        )
    return found, too_long, cut


def _without_beginning(tokens: Tokens, excess: int, begin: Sequence[int]) -> Tokens | None:
    """Leave out tokens at the beginning of the prompt, behind what a text begins with; None: it has too few."""
    start = len(begin) if tokens.ids[: len(begin)].tolist() == list(begin) else 0
    if int(np.argmax(tokens.is_answer)) - start <= excess:
        return None
    kept = np.r_[0:start, start + excess : len(tokens)]
    return Tokens(tokens.ids[kept], tokens.is_answer[kept])


def _held_out(prompts: set[str], fraction: float) -> set[str]:
    """The prompts that are held out: those whose digest is below a threshold, at least one and never all.

    Raises:
        InputError: there is one prompt only.
    """
    ordered = sorted(prompts, key=digest)
    if len(ordered) == 1:
        raise InputError(
            "all pairs have the same prompt, so none can be held out: give pairs of further prompts, or "
            "`validation_data`"
        )
    below = sum(digest(prompt) < fraction * _HASH_SPACE for prompt in ordered)
    return set(ordered[: min(max(1, below), len(ordered) - 1)])


def _fingerprint(*sides: Sequence[EncodedPair]) -> str:
    whole = hashlib.sha256()
    for side in sides:
        whole.update(len(side).to_bytes(8, "little"))
        for pair in side:
            for ids in (pair.chosen, pair.rejected):
                whole.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return whole.hexdigest()[:32]
