"""The settings of fine-tuning on examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from mixln.checked import Checked, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from mixln.data.config import DataConfig
from mixln.tasks.healing_config import LONGEST_ROW, LowRankConfig, chosen_low_rank
from mixln.tasks.recipe import TextTrainingConfig
from mixln.training.config import ExecutionConfig, OptimizerConfig, WantedPrecision


@dataclass(frozen=True)
class FineTuningConfig(Checked):
    """How a model is fine-tuned on examples: AdamW, warmup over 10 % of the steps, cosine to 10 %.

    Attributes:
        epochs: How often the examples are gone through. Parts of an epoch are allowed.
        batch_size: Rows of a step. A row holds as many whole examples as fit.
        micro_batch_size: Rows of a forward and backward. Default: all of the step's.
        sequence_length: Tokens of a row. Default: 512, or as many as the model takes.
        method: full trains all weights. lora trains low-rank updates (Hu et al. 2021), which are merged in the end.
        learning_rate: The peak of the learning rate. Default: 2e-5 for full, 2e-4 for lora.
        weight_decay: Of AdamW.
        rank: Of the updates of lora. Default: 16.
        too_long: What is done with examples that do not fit into a row: refuse, drop, or cut, which cuts off the
            beginning of the prompt. Nothing of an answer is ever cut.
        validation_fraction: The share of the examples that is held out. Examples with one prompt stay together.
        seed: Of the order of the rows, and of all other random numbers.
        precision: As in a recipe.
        compile: Whether to compile the model's blocks. It is worth it from some millions of tokens on.
        checkpoint_every: Steps from one checkpoint to the next. Default: 20 checkpoints in a run.
    """

    checked_path: ClassVar[str] = ""

    epochs: PositiveFloat = 1.0
    batch_size: PositiveInt = 8
    micro_batch_size: PositiveInt | None = None
    sequence_length: PositiveInt | None = None
    method: Literal["full", "lora"] = "full"
    learning_rate: PositiveFloat | None = None
    weight_decay: NonNegativeFloat = 0.0
    rank: PositiveInt | None = None
    too_long: Literal["refuse", "drop", "cut"] = "refuse"
    validation_fraction: Fraction = 0.05
    seed: NonNegativeInt = 0
    precision: WantedPrecision = "auto"
    compile: Literal["always", "never"] = "never"
    checkpoint_every: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Raise InputError if a number is out of range, or a rank is given and no low-rank updates are trained."""
        super().__post_init__()
        chosen_low_rank(self.method, self.rank)

    @property
    def low_rank(self) -> LowRankConfig | None:
        """The low-rank updates to train, if any."""
        return chosen_low_rank(self.method, self.rank)

    def recipe(self, source: str, tokenizer: str, rows: int, length: int = LONGEST_ROW) -> TextTrainingConfig:
        """Return the configuration of the run.

        Args:
            source: where the examples are from.
            tokenizer: folder or hub name of the model's.
            rows: packed rows of an epoch.
            length: tokens of a row.
        """
        rate = {"full": 2e-5, "lora": 2e-4}[self.method] if self.learning_rate is None else self.learning_rate
        return TextTrainingConfig(
            data=DataConfig(corpus=source, tokenizer=tokenizer, sequence_length=length),
            steps=math.ceil(self.epochs * rows / self.batch_size),
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
            precision=self.precision,
            evaluation_batch_size=self.micro_batch_size or self.batch_size,
            optimizer=OptimizerConfig(name="adamw", learning_rate=rate, beta2=0.95, weight_decay=self.weight_decay),
            execution=ExecutionConfig(compile=self.compile, checkpoint_every=self.checkpoint_every),
        )
