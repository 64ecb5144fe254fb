"""Completions of prompts in batches, and how far the model that wrote them is from another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from mixln.errors import InputError
from mixln.models.encoding import padding_token
from mixln.models.foreign import naming_failures

Report = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""


@dataclass(frozen=True)
class Sampling:
    """How prompts are completed. Nothing else that a folder's generation settings say is used.

    Attributes:
        max_new_tokens: at most.
        temperature: logits are divided by it.
        top_p: samples from the likeliest tokens whose probabilities add up to this.
        greedy: takes the likeliest token each time.
        samples: of each prompt.
        seed: of the sampling.
        batch_size: rows that are completed together.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    greedy: bool = False
    samples: int = 1
    seed: int = 0
    batch_size: int = 32


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        ids: its tokens, with the end token if it ended.
        ended: whether it did, within the tokens that it had.
        text: without special tokens.
    """

    ids: list[int]
    ended: bool
    text: str


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a completion: the tokenizer's first, then those of the model's generation settings.

    Of the latter only special tokens count, such as the end of a turn: a config that says nothing has the numbers of
    its class's first tokenizer, which are ordinary tokens of another one.

    Raises:
        InputError: the tokenizer has none.
    """
    own = tokenizer.eos_token_id
    if not isinstance(own, int):
        raise InputError("the tokenizer has no end-of-text token: completions could not end")
    further: Any = getattr(model.generation_config, "eos_token_id", None)
    listed = [] if further is None else [further] if isinstance(further, int) else list(further)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return list(dict.fromkeys([own, *(token for token in listed if token in special)]))


def generation_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, how: Sampling) -> GenerationConfig:
    """Return settings of `generate` that leave nothing to the folder or to defaults (top-k is 50 by default).

    Raises:
        InputError: as `end_tokens`.
    """
    choice: dict[str, Any] = {"do_sample": False}
    if not how.greedy:
        choice = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_tokens(model, tokenizer),
        pad_token_id=padding_token(model, tokenizer),
        **choice,
    )


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    how: Sampling,
    report: Report | None = None,
) -> list[list[Completion]]:
    """Return the completions of each prompt.

    They are a function of weights, prompts and `how` on one machine; the random state is left as it was.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        prompts: tokens of each.
        how: they are completed.
        report: progress.

    Raises:
        InputError: the tokenizer has no end token, or the model cannot go on from a prompt.
    """
    settings, ends = generation_settings(model, tokenizer, how), set(end_tokens(model, tokenizer))
    pad = settings.pad_token_id
    assert isinstance(pad, int)
    rows = [prompt for prompt in prompts for _ in range(how.samples)]
    # rows of like length together, so that there is little padding; the order is that of the prompts again below
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    found: dict[int, Completion] = {}
    generator: Any = model
    before, generator.generation_config = generator.generation_config, settings
    devices = [model.device.index or 0] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            for number, start in enumerate(range(0, len(rows), how.batch_size)):
                batch = order[start : start + how.batch_size]
                torch.manual_seed(how.seed * 1_000_003 + number)
                ids, mask = padded([rows[row] for row in batch], pad, model.device, left=True)
                with naming_failures(f"a {type(model).__name__} cannot complete the prompts"):
                    written = generator.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
                for row, tokens in zip(batch, written[:, ids.shape[1] :].tolist(), strict=True):
                    found[row] = _until_end(tokens, ends, tokenizer)
                if report is not None:
                    report(len(found), len(rows))
    finally:
        generator.generation_config = before
    return [[found[prompt * how.samples + sample] for sample in range(how.samples)] for prompt in range(len(prompts))]


def _until_end(tokens: list[int], ends: set[int], tokenizer: PreTrainedTokenizerBase) -> Completion:
    last = next((place for place, token in enumerate(tokens) if token in ends), None)
    ids = tokens if last is None else tokens[: last + 1]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return Completion(ids, last is not None, text)


def padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device, *, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows as (rows, longest) ids and mask, padded on one side."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        part = slice(longest - len(tokens), longest) if left else slice(0, len(tokens))
        ids[row, part] = torch.tensor(tokens, dtype=ids.dtype)
        mask[row, part] = 1
    return ids.to(device), mask.to(device)


def divergences(
    model: PreTrainedModel,
    other: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    batch_size: int = 32,
    report: Report | None = None,
) -> list[float]:
    """Return KL(model || other) along each completion, in nats:

        sum over its tokens t of sum over v of p(v | y_<t) (log p(v | y_<t) - log q(v | y_<t))

    Averaged over completions that p sampled, that is the divergence of the distributions over completions, without
    bias, never negative, and with less spread than the log-ratio of the sampled tokens alone (the Rao-Blackwellised
    estimator: Amini et al. 2025, arXiv 2504.10637).

    Args:
        model: p.
        other: q, with the same tokens.
        prompts: (rows) tokens before each completion.
        completions: (rows) tokens that p wrote.
        temperature: logits are divided by it, as in the sampling.
        batch_size: rows of a forward.
        report: progress.

    Raises:
        InputError: a model cannot read them, or gives numbers that are none.
    """
    found: list[float] = []
    for start in range(0, len(prompts), batch_size):
        rows = range(start, min(start + batch_size, len(prompts)))
        own = _log_probabilities(model, prompts, completions, rows, temperature)
        theirs = _log_probabilities(other, prompts, completions, rows, temperature)
        for one, two in zip(own, theirs, strict=True):
            total = (one.exp() * (one - two)).sum().item()
            if total != total:
                raise InputError(f"a {type(model).__name__} or its start gives probabilities that are not a number")
            found.append(total)
        if report is not None:
            report(len(found), len(prompts))
    return found


def _log_probabilities(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    rows: range,
    temperature: float,
) -> list[torch.Tensor]:
    """Of each row (tokens of the completion, vocabulary): log-probabilities of what comes at each of its places."""
    ids, mask = padded([[*prompts[row], *completions[row]] for row in rows], 0, model.device, left=False)
    with torch.no_grad(), naming_failures(f"a {type(model).__name__} cannot read the completions"):
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    found: list[torch.Tensor] = []
    for index, row in enumerate(rows):
        first = len(prompts[row]) - 1
        part = logits[index, first : first + len(completions[row])].double() / temperature
        found.append(part.log_softmax(-1))
    return found
