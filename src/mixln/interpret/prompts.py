"""Pairs of prompts with a known answer each, made in code: an induction task and an indirect-object task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mixln.errors import InputError
from mixln.models.encoding import PromptEncoder

_TEMPLATES = (
    "When {first} and {second} went to the store, {giver} gave a drink to",
    "After {first} and {second} had lunch together, {giver} handed a letter to",
    "Then {first} and {second} sat down in the garden, and {giver} showed the book to",
    "While {first} and {second} were working at the office, {giver} sold the car to",
)
_NAMES = (
    *("Mary", "John", "Tom", "James", "Dan", "Sam", "Anna", "Alice", "Bob", "Jack", "Kate", "Paul", "Mark", "Sarah"),
    *("Peter", "David", "Laura", "Emma", "Max", "Adam", "Lucy", "Jane", "Mike", "Simon"),
)


@dataclass(frozen=True)
class PromptPair:
    """Two prompts of one length; what a model is to say next is read at their last token.

    Attributes:
        clean: (tokens,), int64, the prompt that calls for the answer.
        corrupted: (tokens,), the same without what calls for it.
        answer: the token that the clean prompt calls for.
        distractor: the token that its logit is compared with.
    """

    clean: Tensor
    corrupted: Tensor
    answer: int
    distractor: int

    def first_difference(self) -> int:
        """The first position at which the prompts differ.

        Raises:
            InputError: they do not differ, or not in one length.
        """
        if self.clean.shape != self.corrupted.shape or self.clean.ndim != 1:
            raise InputError(
                f"clean and corrupted prompt must be (tokens,) of one length, so that activations can change places; "
                f"they are {tuple(self.clean.shape)} and {tuple(self.corrupted.shape)}"
            )
        different = (self.clean != self.corrupted).nonzero()
        if not len(different):
            raise InputError("clean and corrupted prompt are the same, so patching one into the other does nothing")
        return int(different[0])


def induction_prompts(tokens: Sequence[int], count: int = 8, *, segment: int = 12, seed: int = 0) -> list[PromptPair]:
    """Random tokens that repeat a segment: ... A B ... A, to be followed by B (induction: Olsson et al. 2022).

    The second time the segment is cut off after a token A, drawn from after its first quarter. Corrupted: the first A
    is another token that is not in the prompt, so nothing says what follows A. The distractor is another token of the
    segment.

    Args:
        tokens: to draw from, such as those of a text; special ones left out.
        count: of pairs.
        segment: length of the segment, at least 4.
        seed: what is drawn.

    Raises:
        InputError: numbers out of range, or fewer distinct tokens than a prompt needs.
    """
    distinct = sorted(set(tokens))
    if count < 1 or segment < 4:
        raise InputError(f"count must be at least 1 and segment at least 4, not {count} and {segment}")
    if len(distinct) <= segment:
        raise InputError(
            f"{len(distinct)} distinct tokens to draw from, and a prompt needs {segment + 1}: give more, or a shorter "
            "segment"
        )
    draw = random.Random(seed)
    pairs: list[PromptPair] = []
    for _ in range(count):
        *once, other = draw.sample(distinct, segment + 1)
        cue = draw.randrange(segment // 4, segment - 1)
        clean = [*once, *once[: cue + 1]]
        corrupted = [*clean]
        corrupted[cue] = other
        distractor = draw.choice([token for place, token in enumerate(once) if place not in (cue, cue + 1)])
        pairs.append(PromptPair(torch.tensor(clean), torch.tensor(corrupted), once[cue + 1], distractor))
    return pairs


def indirect_object_prompts(tokenizer: PreTrainedTokenizerBase, count: int = 8, *, seed: int = 0) -> list[PromptPair]:
    """When X and Y went to the store, Y gave a drink to, to be followed by X (indirect objects: Wang et al. 2022).

    Corrupted: X gives, so Y is the answer; all else stays. The distractor is Y. Templates, names and which of the two
    is named first are drawn, of the names that are one token of the tokenizer where they stand. Prompts begin with what
    the tokenizer puts before a text.

    Args:
        tokenizer: of the model.
        count: of pairs.
        seed: what is drawn.

    Raises:
        InputError: the tokenizer has no two names of one token each, as one trained on other text may not.
    """
    draw, encoder = random.Random(seed), PromptEncoder(tokenizer)
    names = [(answer, giver) for answer in _NAMES for giver in _NAMES if answer != giver]
    pairs: list[PromptPair] = []
    for _ in range(count):
        template, answer_is_first = draw.choice(_TEMPLATES), draw.random() < 0.5
        # those that are of several tokens are passed over
        tried = (
            _pair(encoder, tokenizer.unk_token_id, template, *both, answer_is_first)
            for both in draw.sample(names, len(names))
        )
        found = next(filter(None, tried), None)
        if found is None:
            raise InputError(
                "the tokenizer has no two of the names of the indirect-object task as tokens of their own "
                f"({', '.join(_NAMES[:4])} ...): take induction_prompts, which needs no words"
            )
        pairs.append(found)
    return pairs


def _pair(
    encoder: PromptEncoder, unknown: object, template: str, answer: str, giver: str, answer_is_first: bool
) -> PromptPair | None:
    """The prompt in which one gives, and that in which the other does; None if names are of several tokens."""
    first, second = (answer, giver) if answer_is_first else (giver, answer)
    text = template.format(first=first, second=second, giver=giver)
    clean = encoder.encode(text)
    corrupted = encoder.encode(template.format(first=first, second=second, giver=answer))
    if len(clean) != len(corrupted):
        return None
    said = [encoder.encode(f"{text} {name}") for name in (answer, giver)]
    if any(longer[:-1] != clean for longer in said):
        return None
    pair = PromptPair(torch.tensor(clean), torch.tensor(corrupted), said[0][-1], said[1][-1])
    is_one_token_each = pair.answer != pair.distractor and int((pair.clean != pair.corrupted).sum()) == 1
    return pair if is_one_token_each and unknown not in (pair.answer, pair.distractor) else None
