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
        corpus: `python` (this Python's standard library: no download), the path of a file or folder (.txt, .md,
            .jsonl, .json, also .gz, and .parquet), `c4`, `hf:NAME[@REVISION][:CONFIG[:SPLIT]]` for a Hugging Face
            dataset, or a folder written by `mixln data prepare --out`.
        validation_corpus: As `corpus`; training documents equal to one of its documents are dropped. Null: documents
            are split off the corpus by a hash of their content.
        validation_fraction: Share of the documents split off, between 0 and 1.
        text_field: Field or column that holds the text in JSON lines, Parquet and hub datasets.
        tokenizer: Hub name or folder of a Hugging Face tokenizer. Null: a byte-level BPE tokenizer is trained on the
            training documents.
        vocab_size: Most tokens that a trained tokenizer may have, at least 257.
        tokenizer_training_characters: A tokenizer is trained on the first so many characters.
        max_tokens: Stop after this many training tokens, within a document if need be; required for hub datasets.
        max_validation_tokens: Stop after this many validation tokens.
        sequence_length: Tokens in a row.
        cross_documents: Let attention and prediction cross the borders of the documents packed into a row.
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
