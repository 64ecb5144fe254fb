"""Long work on an output folder: where it is kept until the output is whole, by one process at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedTokenizerBase

from mixln.data import PreparedData, prepare_data
from mixln.data.cache import Report
from mixln.device import default_device, num_processes
from mixln.errors import InputError
from mixln.measure.row_limit import longest_row
from mixln.measure.texts import longest_window
from mixln.models.foreign import ModelCallError, naming_failures
from mixln.models.load import load_model, load_plausible_config, load_tokenizer
from mixln.progress import ReportStage
from mixln.storage import claim_folder, held_lock
from mixln.tasks.healing_config import LONGEST_ROW
from mixln.tasks.language_model import feed_forward_widths
from mixln.tasks.recipe import TextTrainingConfig
from mixln.training import Precision
from mixln.training.decisions import agree_on_precision
from mixln.training.distributed import Processes


def row_length(source: str, wanted: int | None) -> int:
    """Return how many tokens a row of training has: as many as wanted, or as healing takes and the model can.

    Args:
        source: Hugging Face folder, or name on the hub, of the model.
        wanted: by the user; None: nothing is said.

    Raises:
        InputError: the model takes no rows so long, or it cannot be opened.
    """
    config = load_plausible_config(source)
    return fitting_row_length(load_tokenizer(source), config, lambda: load_model(source)[0], wanted, source)


def fitting_row_length(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    open_model: Callable[[], nn.Module],
    wanted: int | None,
    name: str,
) -> int:
    """Return what `row_length` does, of a model that may not be there yet.

    Args:
        tokenizer: of the model.
        config: of the model.
        open_model: returns it, if its config may not tell the whole truth.
        wanted: by the user; None: nothing is said.
        name: of the model, in a message.

    Raises:
        InputError: the model takes no rows so long.
    """
    longest = longest_window(tokenizer, config, wanted or LONGEST_ROW)
    if _has_position_table(config):
        longest = longest_row(open_model(), longest)
    if wanted is not None and longest < wanted:
        raise InputError(f"{name} takes no rows of {wanted} tokens: sequence_length may be at most {longest}")
    return longest


def precision_of_further_training(recipe: TextTrainingConfig, config: PreTrainedConfig, folder: Path) -> Precision:
    """Return the precision of a run and of what is measured beside it, as decided or found in its folder.

    Args:
        recipe: of the run.
        config: of the model.
        folder: of the run.
    """
    sizes = *feed_forward_widths(config), recipe.rows_of_a_forward(1) * recipe.data.sequence_length
    return agree_on_precision(recipe.precision, sizes, folder, Processes(default_device()))


def _has_position_table(config: PreTrainedConfig) -> bool:
    """Whether a model may have a table of positions, which can end before its config says; the weights are not read."""
    try:
        with torch.device("meta"), naming_failures("no such model can be built"):
            skeleton = AutoModel.from_config(config)
    except ModelCallError:
        return False  # what is wrong with it is said where it is opened
    tables = [module for module in skeleton.modules() if isinstance(module, nn.Embedding)]
    return any(table is not skeleton.get_input_embeddings() for table in tables)


LOCK_FILE = ".work.lock"
"""Beside the runs, each of which has a lock of its own."""


class TrainingWork:
    """Further training of a trained model, whose runs lie beside the folder that it writes.

    Its methods are to be called inside a `with` block, in which no other process can work on the same.

    Args:
        recipe: of the training, without a model.
        model_config: of the model.
        out: the folder to write.
        folder: where runs, checkpoints and metrics lie.

    Attributes:
        recipe: see above.
        precision: of all that is trained and measured; known once `prepare` is done.
    """

    precision: Precision
    _data: PreparedData

    def __init__(self, recipe: TextTrainingConfig, model_config: PreTrainedConfig, out: Path, folder: Path) -> None:
        self.recipe = recipe
        self._model_config = model_config
        self._out, self._folder = out, folder

    def __enter__(self) -> Self:
        """Raise InputError if another process works there, or the place cannot be written, or torchrun started this."""
        if num_processes() > 1:
            raise InputError(
                "this command works in one process: start it without torchrun. Several processes share the training "
                "itself (mixln.training.train)"
            )
        claim_folder(self._folder)
        busy = f"another process works in {self._folder}. Wait for it, or choose another place than {self._out}"
        self._lock = held_lock(self._folder / LOCK_FILE, busy)
        self._lock.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._lock.__exit__(*details)

    def prepare(self, cache: str | Path | None, say: Report, report_stage: ReportStage | None = None) -> None:
        """Tokenise the text, or find it done already (see `prepare_data`), and settle the precision of all training."""
        self._data = prepare_data(self.recipe.data, cache, say, report_stage=report_stage)
        self.precision = precision_of_further_training(self.recipe, self._model_config, self._folder)
        say(f"precision: {self.precision}")
