"""Training and loading tokenizers, and turning documents into tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from mixln.data.hub_errors import HUB_ERRORS
from mixln.errors import InputError

END_OF_TEXT = "<|endoftext|>"
MINIMUM_VOCAB_SIZE = 257
"""256 bytes and the end-of-text token."""


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


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerFast:
    """Load any Hugging Face tokenizer that needs no code of its own, by hub name or folder.

    A folder that holds no more than GPT-2's `vocab.json` and `merges.txt` will do.

    Raises:
        InputError: It cannot be found or read, has no `tokenizers` backend, or has no end-of-text token.
    """
    folder = Path(name_or_path).expanduser()
    is_folder = folder.is_dir()
    source = str(folder) if is_folder else name_or_path
    bare_gpt2 = is_folder and {"merges.txt", "vocab.json"} == {file.name for file in folder.glob("*.*")}
    try:
        loaded = (GPT2Tokenizer if bare_gpt2 else AutoTokenizer).from_pretrained(source, trust_remote_code=False)
    except (*HUB_ERRORS, ValueError, LookupError, TypeError, ImportError) as error:
        raise InputError(_unreadable(name_or_path, error)) from error
    except Exception as error:
        # The Rust library raises plain Exception for a malformed tokenizer.json; anything more special is not ours.
        if type(error) is not Exception:
            raise
        raise InputError(_unreadable(name_or_path, error)) from error
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


def _unreadable(name_or_path: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return (
        f"cannot load tokenizer {name_or_path!r} ({type(error).__name__}: {reason}); give a name on the Hugging Face "
        "hub or a folder with tokenizer.json, or leave `tokenizer` unset to train one"
    )


class DocumentEncoder:
    """Turns whole documents into token ids, in parallel, without special tokens, truncation or padding.

    Text that spells a special token, such as a literal `<|endoftext|>`, is encoded as the text it is: only the packing
    places the end-of-text token. The tokenizer itself is left as it was.

    Attributes:
        eos_token_id: The id that ends a document.
        vocab_size: One more than the largest id.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert isinstance(tokenizer.eos_token_id, int)
        self.eos_token_id = tokenizer.eos_token_id
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        # A copy: these settings would surprise whoever uses the tokenizer for prompts.
        self._use(tokenizer.backend_tokenizer.to_str())

    def _use(self, definition: str) -> None:
        self._backend = Tokenizer.from_str(definition)
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()

    def __getstate__(self) -> tuple[int, int, str]:
        # The backend pickles itself, but without the settings above.
        return self.eos_token_id, self.vocab_size, self._backend.to_str()

    def __setstate__(self, state: tuple[int, int, str]) -> None:
        self.eos_token_id, self.vocab_size, definition = state
        self._use(definition)

    def encode(self, documents: Sequence[str]) -> list[np.ndarray]:
        """One array of ids (int64) for each document."""
        encodings = self._backend.encode_batch_fast(list(documents), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def decoded_characters(self, ids: np.ndarray) -> int:
        """How many characters the ids stand for."""
        return len(self._backend.decode(ids.tolist(), skip_special_tokens=False))


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 over the whole definition of the tokenizer and its end-of-text token."""
    definition = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id])
    return hashlib.sha256(definition.encode()).hexdigest()
