"""How text becomes tokens: the one place that says so, for training, measuring, healing and generating alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mixln.errors import InputError
from mixln.models.fragments import cut, has_safe_places

IGNORED_TARGET = -100
"""Target of a position where nothing is predicted (`ignore_index` of `torch.nn.functional.cross_entropy`)."""

_BATCH_CHARACTERS = 2_000_000
"""Tokenised at a time: enough to occupy the threads; the tokenizers library holds about 100 bytes for each."""

_PROBES = ("Some text, 1.", "a", "0 1 2")


def require_tokenizer(tokenizer: object) -> PreTrainedTokenizerBase:
    """Return a tokenizer, after a look at whether it is one.

    Raises:
        InputError: it is None, or no tokenizer of transformers.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    what = "missing" if tokenizer is None else f"a {type(tokenizer).__name__}"
    raise InputError(
        f"`tokenizer` is {what}: give the model's own, as `AutoTokenizer.from_pretrained` of transformers returns it"
    )


class DocumentEncoder:
    """Turns whole documents into token ids, in parallel, without truncation or padding.

    A document begins as the tokenizer begins a text: with `<s>`, say, as most Llama tokenizers do, or with nothing. How
    it ends is up to whoever reads on: packed documents are followed by the end-of-text token, encoders get what their
    tokenizer puts behind a text.

    Text that spells a special token, such as a literal `<|endoftext|>`, is encoded as the text it is. The tokenizer
    itself is left as it was. Long documents are encoded in fragments, so that memory does not grow with them; their
    tokens are the same (see `mixln.models.fragments`).

    Args:
        tokenizer: of transformers, with a backend of the tokenizers library (several times as fast) or without.

    Attributes:
        begin: ids that the tokenizer puts before a text.
        end: ids that it puts behind a text.
        eos_token_id: the id that ends a document; None: the tokenizer has none.
        vocab_size: one more than the largest id.
        backend: the tokenizer of the tokenizers library, set to encode plain text; None: the tokenizer has none.

    Raises:
        InputError: it is no tokenizer, or what it puts around a text depends on the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer = require_tokenizer(tokenizer)
        eos = tokenizer.eos_token_id
        self.eos_token_id: int | None = eos if isinstance(eos, int) else None
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.backend: Tokenizer | None = None
        if isinstance(tokenizer, PreTrainedTokenizerFast):
            # a copy: these settings would surprise whoever uses the tokenizer for prompts
            definition = tokenizer.backend_tokenizer.to_str()
            self.backend = _plain_backend(definition)
            self._is_cut = has_safe_places(definition)
        else:
            self._tokenizer = tokenizer
            self._is_cut = False
        self.begin, self.end = self._find_frame(tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        # the backend pickles itself, but without its settings
        return {**vars(self), "backend": None if self.backend is None else self.backend.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        definition = state["backend"]
        self.__dict__.update(state, backend=None if definition is None else _plain_backend(definition))

    def encode(self, documents: Sequence[str]) -> list[np.ndarray]:
        """One array of ids (int64) for each document: what the tokenizer begins it with, then its text.

        The array of a document without a token of its own is empty.
        """
        begin = np.array(self.begin, dtype=np.int64)
        return [np.concatenate([begin, ids]) if len(ids) else ids for ids in self.encode_bare(documents)]

    def encode_bare(self, documents: Sequence[str]) -> list[np.ndarray]:
        """One array of ids (int64) for each document: those of its text alone.

        Raises:
            InputError: as `fragments`.
        """
        fragments = [self.fragments(document) for document in documents]
        encoded = (ids for batch in batches(chain.from_iterable(fragments)) for ids in self._encode(batch))
        return [np.concatenate(list(islice(encoded, len(parts)))) for parts in fragments]

    def fragments(self, document: str) -> list[str]:
        """Return a document in parts whose tokens, one after another, are its tokens.

        Raises:
            InputError: the document is too long to be tokenised, and cannot be cut.
        """
        return cut(document, is_safe=self._is_cut)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        if self.backend is not None:
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
            return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        assert self._tokenizer is not None
        found = self._tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        return [np.array(ids, dtype=np.int64) for ids in found["input_ids"]]

    def decoded_characters(self, ids: np.ndarray) -> int:
        """How many characters the ids stand for, what a document begins with not counted."""
        begin = len(self.begin)
        text = ids[begin:] if begin and tuple(ids[:begin].tolist()) == self.begin else ids
        decoder = self.backend or self._tokenizer
        assert decoder is not None
        return len(str(decoder.decode(text.tolist(), skip_special_tokens=False)))

    def _find_frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer puts before and behind a text, by what it makes of some texts with it and without."""
        names = [name for name in tokenizer.get_vocab() if name not in tokenizer.all_special_tokens]
        frames: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        for text in (*_PROBES, *names[:1]):
            whole = tuple(tokenizer(text, verbose=False)["input_ids"])
            (bare,) = (tuple(ids.tolist()) for ids in self.encode_bare([text]))
            if bare:
                starts = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
                frames |= {(whole[: starts[0]], whole[starts[0] + len(bare) :])} if starts else set()
                if not starts or len(frames) > 1:
                    raise InputError(
                        f"this {type(tokenizer).__name__} turns {text!r} into {list(whole)}, and without special "
                        "tokens "
                        f"into {list(bare)}: the special tokens are not a fixed frame around the text, so documents "
                        "cannot be tokenised with it. Use a tokenizer whose special tokens stand around the text"
                    )
        return frames.pop() if frames else ((), ())


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield texts in lists of about 2 million characters: as many as should be encoded at a time."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _plain_backend(definition: str) -> Tokenizer:
    backend = Tokenizer.from_str(definition)
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return backend


class PromptEncoder:
    """Turns texts that a model is to continue into tokens, as the tokenizer makes them, special tokens included.

    Unlike a document's text, special tokens that are spelt in a prompt are meant (a chat template writes them). What
    the tokenizer puts behind a text is left out, since the text goes on, and a text begins once: a prompt that spells
    the begin token itself gets no second one.

    Args:
        tokenizer: of the model.

    Raises:
        InputError: as `DocumentEncoder`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        encoder = DocumentEncoder(tokenizer)
        self._begin, self._end = list(encoder.begin), list(encoder.end)

    def encode(self, text: str) -> list[int]:
        """Return ids; of an empty text what a text begins with, or the token that stands before one, or none."""
        begin, end = self._begin, self._end
        ids: list[int] = list(self._tokenizer(text, verbose=False)["input_ids"]) if text else [*begin]
        if end and text and ids[-len(end) :] == end:
            ids = ids[: -len(end)]
        if begin and ids[len(begin) : 2 * len(begin)] == begin:
            ids = ids[len(begin) :]
        if ids:
            return ids
        starts = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        return [token for token in starts if isinstance(token, int)][:1]


def input_embeddings(model: nn.Module) -> nn.Module | None:
    """Return what a model puts its tokens into; None: it does not say."""
    try:
        return model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    except (AttributeError, NotImplementedError):
        return None


def embedding_size(model: nn.Module) -> int | None:
    """Return how many tokens a model has embeddings of; None: it has no plain table of them."""
    table = input_embeddings(model)
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def require_embedded(ids: Iterable[int], model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that a model has an embedding of every token.

    Args:
        ids: the tokens in use.
        model: that is to read them.
        tokenizer: whose tokens they are.

    Raises:
        InputError: one has none; names it, and both sizes.
    """
    rows = embedding_size(model)
    if rows is None:
        return
    unknown = sorted(token for token in set(ids) if not 0 <= token < rows)
    if unknown:
        more = "" if len(unknown) == 1 else f" and {len(unknown) - 1} more"
        raise InputError(
            f"token {unknown[0]} ({tokenizer.convert_ids_to_tokens(unknown[0])!r}){more} is in use, but the "
            f"{type(model).__name__} has embeddings for {rows} tokens, and its tokenizer {len(tokenizer)} tokens: give "
            "the model's own tokenizer, or enlarge its embedding (resize_token_embeddings)"
        )


def padding_token(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return a token for where nothing is looked at: that of padding, or of the end of text, if the model has it."""
    rows = embedding_size(model)
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    known = [token for token in candidates if isinstance(token, int) and (rows is None or 0 <= token < rows)]
    return known[0] if known else 0
