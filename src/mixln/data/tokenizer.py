"""Training and loading tokenizers; what text becomes in their tokens is said by `mixln.models.encoding`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mixln.errors import InputError
from mixln.models.load import load_tokenizer
from mixln.signatures import checked_arguments

END_OF_TEXT = "<|endoftext|>"
MINIMUM_VOCAB_SIZE = 257
"""256 bytes and the end-of-text token."""

_FIX = "Give a name on the Hugging Face hub or a folder with tokenizer.json, or leave `tokenizer` unset to train one"


@checked_arguments
def train_tokenizer(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; any text survives encoding and decoding unchanged.

    `<|endoftext|>` (id 0) is its bos, eos and padding token. The same documents in the same order give the same
    tokenizer.

    Args:
        documents: Read once, lazily.
        vocab_size: The most tokens it may have, special token included. Text with too few distinct pairs gives fewer:
            the real size is `len(tokenizer)`, and that is what a model's `vocab_size` should be.

    Raises:
        InputError: `vocab_size` is below 257.
    """
    if vocab_size < MINIMUM_VOCAB_SIZE:
        raise InputError(
            f"vocab_size {vocab_size} is too small: a byte-level vocabulary needs {MINIMUM_VOCAB_SIZE} "
            "(256 bytes and the end-of-text token) or more"
        )
    backend = Tokenizer(models.BPE())
    # No normaliser and no added prefix space: both would change the text.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        # alphabet() has no fixed order, and ids follow the order given.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    return wrap_tokenizer(backend)


def wrap_tokenizer(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Give a backend made by `train_tokenizer` (or read back from its JSON) the interface of transformers."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def load_training_tokenizer(name_or_path: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer that can prepare training data (see `mixln.models.load.load_tokenizer`).

    Raises:
        InputError: It cannot be found or read, has no `tokenizers` backend, or has no end-of-text token.
    """
    loaded = load_tokenizer(name_or_path, _FIX)
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise InputError(
            f"tokenizer {name_or_path!r} has no tokenizer.json; convert it with transformers first, or leave "
            "`tokenizer` unset to train one"
        )
    if loaded.eos_token_id is None:
        raise InputError(
            f"tokenizer {name_or_path!r} has no end-of-text token, which must follow every document; name one as "
            '"eos_token" in its tokenizer_config.json, or leave `tokenizer` unset to train one'
        )
    return loaded


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 over the whole definition of the tokenizer and its end-of-text token."""
    definition = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id])
    return hashlib.sha256(definition.encode()).hexdigest()
