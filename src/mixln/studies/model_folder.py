"""Models that a function is given: as folders, names on the hub, or in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mixln.errors import InputError
from mixln.models.load import model_name
from mixln.quiet import quiet_transformers
from mixln.storage import disk_errors, whole_folder
from mixln.studies.companion import TOKENIZER, Companion


@dataclass(frozen=True)
class Source:
    """Where a model can be read.

    Attributes:
        path: Hugging Face folder, or name on the hub.
        name: what it is called in records.
    """

    path: str
    name: str


@contextmanager
def source_of(model: object, given: object, out: Path, companion: Companion = TOKENIZER) -> Iterator[Source]:
    """Give the place of a model inside the block; one that is in memory is written beside `out` for that time.

    It is the same place each time, so that work that was interrupted finds the same model there.

    Args:
        model: Hugging Face folder, name on the hub, or a model in memory.
        given: the tokenizer or image processor of a model in memory.
        out: the folder that will be made of it.
        companion: which of the two it is.

    Raises:
        InputError: a companion is missing, or given beside a folder; or it is no model of transformers.
    """
    if isinstance(model, str | Path):
        if given is not None:
            raise InputError(f"`{companion.name}` is for a model in memory, and a folder has its own. Leave it out")
        yield Source(str(model), str(model))
        return
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"`model` must be a folder, a name on the hub, or a model of transformers, not a {type(model).__name__}"
        )
    own: Any = companion.require(given)
    folder = out.absolute().with_name(f"{out.name}.source")
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier call, which was interrupted
    with disk_errors(f"{folder} could not be written", "Choose another place for `out`"), whole_folder(folder) as fresh:
        with quiet_transformers():
            model.save_pretrained(fresh)
        own.save_pretrained(fresh)
    try:
        yield Source(str(folder), model_name(model))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
