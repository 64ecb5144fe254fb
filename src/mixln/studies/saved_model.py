"""What a function returns that has written a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixln.models.load import load_tokenizer, load_whole_model
from mixln.result import Result, copy_folder


@dataclass(frozen=True, repr=False)
class SavedModel(Result):
    """A Hugging Face folder that was written; `save` copies it to another place.

    Attributes:
        folder: of the model.
    """

    folder: Path

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model of the folder, in evaluation mode on the CPU; opened when it is first asked for."""
        return load_whole_model(str(self.folder))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the folder; opened when it is first asked for."""
        return load_tokenizer(str(self.folder))

    def _write(self, folder: Path) -> Path:
        return copy_folder(self.folder, folder)


@dataclass(frozen=True, repr=False)
class ConvertedModel(SavedModel):
    """A model in another format; its table has one row.

    Attributes:
        text: what there is to say of it, in a line.
    """

    text: str

    def parts(self) -> Iterable[str]:
        """The line."""
        return [f"{self.folder}: {self.text}"]

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The folder and the line."""
        return [{"folder": str(self.folder), "text": self.text}]
