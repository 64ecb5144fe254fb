"""Work on an output that takes long: where it lies until the output is whole, and that one process alone does it."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from mixln.data import PreparedData, prepare_data
from mixln.data.cache import Report
from mixln.depth.texts import longest_window
from mixln.device import num_processes
from mixln.errors import InputError
from mixln.files import claim_folder
from mixln.models.load import load_config, load_tokenizer
from mixln.posttraining.heal import LONGEST_ROW
from mixln.training import Recipe


def row_length(source: str, wanted: int | None) -> int:
    """Return how many tokens a row of training has: as many as wanted, or as healing takes and the model can.

    Args:
        source: Hugging Face folder, or name on the hub, of the model.
        wanted: by the user; None: nothing is said.

    Raises:
        InputError: the model takes no rows so long, or it cannot be opened.
    """
    longest = longest_window(load_tokenizer(source), load_config(source), wanted or LONGEST_ROW)
    if wanted is not None and longest < wanted:
        raise InputError(f"{source} takes no rows of {wanted} tokens: sequence_length may be at most {longest}")
    return longest


class TrainingWork:
    """A trained model's training on, whose runs lie beside the folder that comes of it.

    Its methods are to be called inside a `with` block, in which no other process can work on the same.

    Args:
        recipe: of the training.
        out: the folder to write.
        folder: where runs, checkpoints and metrics lie.
        lock_name: of the file there that says that a process is at it.

    Attributes:
        recipe: see above.
    """

    _data: PreparedData

    def __init__(self, recipe: Recipe, out: Path, folder: Path, lock_name: str) -> None:
        self.recipe = recipe
        self._out, self._folder = out, folder
        self._lock = FileLock(folder / lock_name)

    def __enter__(self) -> Self:
        """Raise InputError if another process works there, or the place cannot be written, or torchrun started this."""
        if num_processes() > 1:
            raise InputError(
                "this command works in one process: start it without torchrun. Several processes share the training "
                "itself (mixln.training.train)"
            )
        claim_folder(self._folder)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"another process works in {self._folder}. Wait for it, or choose another place than {self._out}"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def prepare(self, cache: Path | None, say: Report) -> None:
        """Tokenise the text, or find it done already; see `prepare_data`."""
        self._data = prepare_data(self.recipe.data, cache, say)
