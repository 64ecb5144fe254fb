"""The settings of data preparation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from mixln.checked import Checked, Range
from mixln.errors import InputError


@dataclass(frozen=True)
class DataConfig(Checked):
    """What to train on.

    Attributes:
        corpus: A file, folder or dataset of text, or `python`: its standard library. A file is .txt, .md, .jsonl or
            .json, any of them with .gz, or .parquet. A dataset of the hub is `c4`, or
            `hf:NAME[@REVISION][:CONFIG[:SPLIT]]`. A folder that `mixln data prepare --out` has written is taken as it
            is.
        validation_corpus: The text to validate on. Training documents that are equal to one of its documents are
            dropped. Default: documents that are split off the text by a hash of their content.
        validation_fraction: The share of the documents that are split off, between 0 and 1.
        text_field: The field or column that holds the text in JSON lines, Parquet and hub datasets.
        tokenizer: The hub name or folder of a Hugging Face tokenizer. Default: a byte-level BPE tokenizer is trained on
            the training documents.
        vocab_size: The most tokens that a trained tokenizer may have, at least 257.
        tokenizer_training_characters: A tokenizer is trained on as many characters, from the beginning of the text.
        max_tokens: Preparation stops after so many training tokens, within a document if need be. Datasets of the hub
            need this. Default: all tokens.
        max_validation_tokens: Preparation stops after so many validation tokens.
        sequence_length: Tokens in a row.
        cross_documents: Let attention and prediction cross the borders of the documents that are packed into a row.
    """

    checked_path: ClassVar[str] = "data."

    corpus: str = "python"
    validation_corpus: str | None = None
    validation_fraction: float = 0.05
    text_field: str = "text"
    tokenizer: str | None = None
    vocab_size: int = 4096
    tokenizer_training_characters: Annotated[int, Range(low=1)] = 20_000_000
    max_tokens: Annotated[int, Range(low=2)] | None = None
    max_validation_tokens: Annotated[int, Range(low=2)] = 32_768
    sequence_length: Annotated[int, Range(low=1)] = 256
    cross_documents: bool = False

    def __post_init__(self) -> None:
        """Raise InputError if a value is one that no corpus could serve."""
        super().__post_init__()
        if self.validation_corpus is None and not 0 < self.validation_fraction < 1:
            raise InputError(
                f"data.validation_fraction must lie between 0 and 1, got {self.validation_fraction}; to train on every "
                "document, give a validation_corpus"
            )
