"""What all measurements of one run have in common, in a form that travels to their processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from mixln.data import DataConfig
from mixln.tasks import Recipe, check_model
from mixln.tasks.recipes import load_recipe
from mixln.tasks.stability import vocabulary_size
from mixln.training.precision import PrecisionName

SEQUENCE_LENGTH = 256
SIZES = ("nano", "71m", "250m", "1b")
"""Recipes that `python -m benchmarks` measures."""

DEFAULT_MICRO_BATCH_SIZE = {"nano": 8, "71m": 16, "250m": 16, "1b": 4}
DEFAULT_STEPS = {"nano": 20, "71m": 6, "250m": 4, "1b": 3}

_MOST_TOKENS = 2_000_000  # of the documents: far more than a measurement sees, and little to prepare


@dataclass(frozen=True)
class Settings:
    """One measurement: a model, its data and the number of steps.

    Attributes:
        size: recipe that the model and the optimiser are taken from: a shipped one, or a path.
        documents: corpus, as `mixln.data.DataConfig.corpus`.
        tokenizer: folder of the tokenizer that all contenders share.
        micro_batch_size: rows of 256 tokens in one forward and backward pass.
        accumulation: micro-batches in one optimiser step.
        warm_up_steps: optimiser steps before the measured ones.
        steps: measured optimiser steps.
        threads: of PyTorch on the processor.
        precision: of matrix multiplications, for all contenders: bfloat16 under autocast, or float32 throughout.
        cache: folder for tokenised data; None: the library's own.
        placement: scheme of mixln's engine.
        num_layers: blocks; None: the recipe's.
        seed: of initial weights and of the order of the data.
        compile: whether mixln's model is compiled; of the other contenders, their names say it.
        processes: that share every step, each with `micro_batch_size * accumulation` rows; mixln's engine alone.
        strategy: how they share the model.
    """

    size: str
    documents: str
    tokenizer: str
    micro_batch_size: int
    accumulation: int
    warm_up_steps: int
    steps: int
    threads: int
    precision: PrecisionName
    cache: str | None = None
    placement: str = "pre"
    num_layers: int | None = None
    seed: int = 0
    compile: bool = True
    processes: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"

    @property
    def total_steps(self) -> int:
        """Optimiser steps, those of the warm-up included."""
        return self.warm_up_steps + self.steps

    @property
    def rows_per_step(self) -> int:
        """Rows in one optimiser step, of all processes."""
        return self.micro_batch_size * self.accumulation * self.processes

    @property
    def vocabulary(self) -> int:
        """Tokens in the vocabulary."""
        return vocabulary_of(self.size)

    @property
    def cache_folder(self) -> Path | None:
        """The folder for tokenised data; None: the library's own."""
        return None if self.cache is None else Path(self.cache)

    def data_config(self) -> DataConfig:
        """Return the settings of data preparation."""
        return DataConfig(
            corpus=self.documents,
            tokenizer=self.tokenizer,
            sequence_length=SEQUENCE_LENGTH,
            max_tokens=_MOST_TOKENS,
        )

    def recipe(self) -> Recipe:
        """Return the recipe of this measurement; its schedule is that of the whole training run."""
        recipe = load_recipe(self.size)
        model = replace(
            recipe.model, placement=self.placement, num_hidden_layers=self.num_layers or recipe.model.num_hidden_layers
        )
        recipe = replace(
            recipe,
            model=model,
            data=self.data_config(),
            steps=max(recipe.steps, self.total_steps),
            stop_step=self.total_steps,
            batch_size=self.rows_per_step,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
            precision=self.precision,
            execution=replace(recipe.execution, compile="always" if self.compile else "never", strategy=self.strategy),
        )
        return check_model(recipe)

    def to_json(self) -> str:
        """Return the settings as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


def pre_comes_first(step: int) -> bool:
    """Whose turn is first in a pair of steps: in turns, so that a drift of the machine's speed favours neither."""
    return step % 2 == 0


def vocabulary_of(size: str) -> int:
    """Return the tokens in the vocabulary of a size of model."""
    return vocabulary_size(load_recipe(size).data)
