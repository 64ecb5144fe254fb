"""From texts to the batches that a model is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch
from mixln.models.causal import without_heads
from mixln.models.encoding import IGNORED_TARGET, DocumentEncoder, require_tokenizer
from mixln.models.foreign import ModelCallError, naming_failures
from mixln.signatures import checked_arguments

_CHARACTERS_PER_TOKEN = 32
"""More than the tokens of any tokenizer have on average: text beyond so many characters is not tokenised."""

_WITHOUT_LIMIT = 10**9
"""Tokenizers without a limit of their own have one of 1e30."""


@dataclass(frozen=True)
class TextWindow:
    """A piece of one document, as the model gets it.

    Attributes:
        input_ids: its tokens.
        document: the number of its document.
    """

    input_ids: list[int]
    document: int


@checked_arguments
def text_windows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    window: int,
    max_tokens: int,
    max_documents: int,
    *,
    special_tokens: bool,
) -> list[TextWindow]:
    """Cut documents into windows that do not overlap, and take as many as `max_tokens` allows from all documents alike.

    In the order of the result the first window of every document comes first, then the second of each, and so on: so
    its beginning covers as many documents as possible, whatever their lengths, and intervals over documents mean
    something. The last window of a document is as long as what is left of it.

    Args:
        tokenizer: of the model.
        texts: one document each.
        window: tokens of a window at most, special tokens included.
        max_tokens: of all windows together.
        max_documents: to read.
        special_tokens: whether each window gets the tokenizer's own (as an encoder is used); otherwise a document
            begins with what the tokenizer puts before a text, if it does, and nothing follows it.

    Raises:
        InputError: there is no text, or all of it together is shorter than one window.
    """
    encoder = DocumentEncoder(tokenizer)
    frame = len(encoder.begin) + len(encoder.end)
    if special_tokens and frame >= window:
        raise InputError(
            f"a window of {window} tokens has no room for text beside {frame} special tokens. Give a larger "
            "`sequence_length`"
        )
    most_characters = max_tokens * _CHARACTERS_PER_TOKEN
    documents = [
        _pieces(encoder, text[:most_characters], window, special_tokens) for text in islice(texts, max_documents)
    ]
    windows: list[TextWindow] = []
    left = max_tokens
    for turn in zip_longest(*documents):
        for document, ids in enumerate(turn):
            if ids is None or left <= 0:
                continue
            windows.append(TextWindow(ids[:left], document))
            left -= len(windows[-1].input_ids)
    total = max_tokens - left
    if total < min(window, max_tokens):
        what = f"all of the text is {total} tokens, less than one window" if total else "there is no text to measure on"
        raise InputError(f"{what} (of {window} tokens). Give more text, or a smaller `sequence_length`")
    return windows


def _pieces(encoder: DocumentEncoder, text: str, window: int, special_tokens: bool) -> list[list[int]]:
    begin, end = (list(encoder.begin), list(encoder.end)) if special_tokens else ([], [])
    (ids,) = encoder.encode_bare([text]) if special_tokens else encoder.encode([text])
    room = window - len(begin) - len(end)
    return [[*begin, *ids[start : start + room].tolist(), *end] for start in range(0, len(ids), room)]


def text_batches(
    windows: Sequence[TextWindow], batch_size: int, padding_id: int, *, predicts_next: bool, padding_side: str = "right"
) -> list[ModelBatch]:
    """Put windows into batches, in their order, padded to the longest of each batch.

    Args:
        windows: of `text_windows`.
        batch_size: rows of a batch.
        padding_id: any token; what stands there is masked.
        predicts_next: whether the model predicts the next token: then the positions with a next token count and are its
            targets; else all that is not padding counts.
        padding_side: "right" or "left"; results do not depend on it. With padding on the left the model is told the
            positions; with padding on the right it finds them itself, as in use: not all models count from 0.
    """
    return [
        _batch(windows[start : start + batch_size], padding_id, predicts_next, padding_side)
        for start in range(0, len(windows), batch_size)
    ]


def _batch(windows: Sequence[TextWindow], padding_id: int, predicts_next: bool, padding_side: str) -> ModelBatch:
    rows = [torch.tensor(window.input_ids) for window in windows]

    def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=padding_side)

    attention_mask = padded([torch.ones_like(row) for row in rows], 0)
    arguments = {"input_ids": padded(rows, padding_id), "attention_mask": attention_mask}
    documents = torch.tensor([window.document for window in windows])
    if not predicts_next:
        return ModelBatch(arguments, attention_mask.bool(), None, documents)
    if padding_side == "left":
        arguments["position_ids"] = (attention_mask.cumsum(1) - 1).clamp_min(0)
    targets = padded([torch.cat([row[1:], row.new_full((1,), IGNORED_TARGET)]) for row in rows], IGNORED_TARGET)
    return ModelBatch({**arguments, "use_cache": False}, targets != IGNORED_TARGET, targets, documents)


def longest_window(tokenizer: PreTrainedTokenizerBase, config: object, wanted: int) -> int:
    """The wanted window, or the longest that tokenizer and config name if that is less (see also `longest_row`)."""
    limits = [
        limit
        for limit in (require_tokenizer(tokenizer).model_max_length, getattr(config, "max_position_embeddings", None))
        if isinstance(limit, int) and 0 < limit < _WITHOUT_LIMIT
    ]
    return min([wanted, *limits])


def encoder_around(model: nn.Module, stack: str | None) -> tuple[nn.Module, str, str] | None:
    """The encoder of an encoder-decoder, its name, and that of a list of blocks in it; None if the list is elsewhere.

    An encoder runs on text alone; the whole model needs a second text, for its decoder.

    Args:
        model: any.
        stack: name of the list, in the model or in its part without heads.
    """
    base, prefix = without_heads(model)
    get: Any = getattr(base, "get_encoder", None)
    if stack is None or get is None or not getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return None
    try:
        with naming_failures(f"a {type(base).__name__} does not give its encoder"):
            encoder = get()
    except ModelCallError:
        return None
    name = next((name for name, module in base.named_modules() if module is encoder), "")
    inside = stack.removeprefix(prefix)
    return (encoder, prefix + name, inside.removeprefix(f"{name}.")) if name and inside.startswith(f"{name}.") else None
