"""Healing: training a pruned model on for a while, so that what is left takes over what was removed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from mixln.data import DataConfig, PreparedData
from mixln.depth import EvaluationLoss
from mixln.depth.forward import model_device
from mixln.errors import InputError
from mixln.posttraining.pretrained import LowRankConfig, PretrainedModel, next_token_objective
from mixln.training import ExecutionConfig, OptimizerConfig, Recipe, TrainedModel, train
from mixln.training.distributed import Processes
from mixln.training.run_log import ReportStep
from mixln.training.validation import validate

LONGEST_ROW = 512
"""Tokens, where nothing else is said."""


@dataclass(frozen=True)
class HealingConfig:
    """How a pruned model is trained on: AdamW without decay, warmup over 10 % of the steps, cosine to 10 %.

    Attributes:
        tokens: to train on; a text that has fewer is gone through again.
        method: full trains all weights; lora trains low-rank updates (Hu et al. 2021), merged in the end, as Gromov et
            al. 2024 did: less memory, and less can be forgotten.
        learning_rate: the peak; null: 1e-4 for full, 1e-3 for lora.
        rank: of the updates of lora.
        sequence_length: tokens in a row; null: 512, or as many as the model takes.
        batch_size: rows of a step.
        micro_batch_size: rows of a forward and backward; null: all of the step's.
        validation_corpus: what the losses are measured on; null: documents split off the text.
        max_validation_tokens: of it.
        seed: of the order of the data, and of lora's first weights.
        precision: as in a recipe.
        compile: whether to compile the model's blocks; worth it from some millions of tokens on.
    """

    tokens: int = 1_000_000
    method: Literal["full", "lora"] = "full"
    learning_rate: float | None = None
    rank: int = 16
    sequence_length: int | None = None
    batch_size: int = 8
    micro_batch_size: int | None = None
    validation_corpus: str | None = None
    max_validation_tokens: int = 32_768
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["always", "never"] = "never"

    @property
    def low_rank(self) -> LowRankConfig | None:
        """The low-rank updates to train, if any."""
        return LowRankConfig(self.rank) if self.method == "lora" else None

    def recipe(self, corpus: str, tokenizer: str, longest: int = LONGEST_ROW) -> Recipe:
        """Return the recipe of the run.

        Args:
            corpus: to train on, as in `mixln train`.
            tokenizer: folder or hub name of the model's.
            longest: tokens of a row that the model takes.

        Raises:
            InputError: a number is out of range.
        """
        for name in ("tokens", "rank", "batch_size", "sequence_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"healing.{name} must be at least 1, not {value}")
        length = self.sequence_length or longest
        steps = math.ceil(self.tokens / (self.batch_size * length))
        rate = {"full": 1e-4, "lora": 1e-3}[self.method] if self.learning_rate is None else self.learning_rate
        recipe = Recipe(
            data=fine_tuning_data(
                corpus,
                tokenizer,
                rows=steps * self.batch_size,
                sequence_length=length,
                validation_corpus=self.validation_corpus,
                max_validation_tokens=self.max_validation_tokens,
            ),
            optimizer=OptimizerConfig(name="adamw", learning_rate=rate, beta2=0.95),
            steps=steps,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
            precision=self.precision,
            evaluation_batch_size=self.micro_batch_size or self.batch_size,
            execution=ExecutionConfig(compile=self.compile),
        )
        try:
            recipe.data.check()
            return recipe.check()
        except InputError as error:
            raise InputError(f"--healing: {error}") from error


def fine_tuning_data(
    corpus: str,
    tokenizer: str,
    *,
    rows: int,
    sequence_length: int,
    validation_corpus: str | None,
    max_validation_tokens: int,
) -> DataConfig:
    """Return the data of a trained model's training on: in its own tokens, and as many as so many rows take."""
    return DataConfig(
        corpus=corpus,
        validation_corpus=validation_corpus,
        tokenizer=tokenizer,
        # a row's targets reach one token further, and the last partial row is dropped
        max_tokens=rows * sequence_length + 1,
        max_validation_tokens=max_validation_tokens,
        sequence_length=sequence_length,
    )


def heal(
    pruned: Path,
    recipe: Recipe,
    data: PreparedData,
    folder: Path,
    *,
    low_rank: LowRankConfig | None = None,
    report_step: ReportStep | None = None,
) -> TrainedModel:
    """Train a language model of any architecture on, on the training engine; what was interrupted is taken up.

    Args:
        pruned: a Hugging Face folder.
        recipe: of the run; its `model` plays no part.
        data: in the tokens of that folder's tokenizer.
        folder: of the run: checkpoints, metrics, and in the end `model/`.
        low_rank: train low-rank updates only, merged in the end; None: all weights.
        report_step: progress.

    Raises:
        InputError: the folder is no language model, the data are in other tokens, or anything that `train` raises.
        TrainingInterrupted, TrainingDivergedError: as `train`.
    """
    source = PretrainedModel(pruned, recipe, data.tokenizer, low_rank)
    return train(recipe, data, folder, report_step, source=source)


def validation_loss(model: PreTrainedModel, recipe: Recipe, data: PreparedData) -> EvaluationLoss:
    """Return total loss / total predicted tokens of any causal language model on the validation split."""
    objective = next_token_objective(model, "sdpa")
    return validate(objective, objective, recipe, data.validation, Processes(model_device(model)))
