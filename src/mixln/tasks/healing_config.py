"""The settings of training a trained model further: what is common, low-rank updates, and healing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from mixln.checked import Checked, NonNegativeInt, PositiveFloat, PositiveInt, Range
from mixln.data.config import DataConfig
from mixln.errors import InputError
from mixln.tasks.recipe import TextTrainingConfig, steps_of_tokens
from mixln.training.config import ExecutionConfig, OptimizerConfig, WantedPrecision

LONGEST_ROW = 512
"""Tokens, where nothing else is said."""


@dataclass(frozen=True)
class LowRankConfig(Checked):
    """LoRA (Hu et al. 2021): W x becomes W x + (alpha / rank) B A x; only A (rank, in) and B (out, rank) are trained.

    Attributes:
        rank: of every update.
        alpha: its scale; null: twice the rank.
        targets: endings of the names of the linear layers that get one; empty: all but the head.
    """

    checked_path: ClassVar[str] = "low_rank."

    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None
    targets: tuple[str, ...] = ()


def chosen_low_rank(method: Literal["full", "lora"], rank: int | None) -> LowRankConfig | None:
    """Return the low-rank updates that a method trains, if any.

    Args:
        method: of training.
        rank: of the updates; None: the usual one.

    Raises:
        InputError: there is a rank, and the method trains all weights.
    """
    if method == "lora":
        return LowRankConfig() if rank is None else LowRankConfig(rank)
    if rank is not None:
        raise InputError(f"`rank={rank}` is of low-rank updates, and all weights are trained: add `method=lora`")
    return None


@dataclass(frozen=True)
class FurtherTrainingConfig(Checked):
    """What users set wherever a trained model is trained further on text.

    Attributes:
        batch_size: Rows of a step.
        micro_batch_size: Rows of a forward and backward pass. Default: all of the step's.
        sequence_length: Tokens in a row. Default: 512, or as many as the model takes.
        validation_text: The text that the losses are measured on. Default: documents that are split off the text.
        max_validation_tokens: As many tokens of it are measured on.
        seed: The seed of the order of the data, and of all other random numbers.
        precision: The number format to compute in: float32, bfloat16, or auto, which is bfloat16 where that is clearly
            faster on this machine.
        compile: Whether to compile the model's blocks. This is worth it from some millions of tokens on.
    """

    batch_size: PositiveInt = 8
    micro_batch_size: PositiveInt | None = None
    sequence_length: PositiveInt | None = None
    validation_text: str | None = None
    max_validation_tokens: Annotated[int, Range(low=2)] = 32_768
    seed: NonNegativeInt = 0
    precision: WantedPrecision = "auto"
    compile: Literal["always", "never"] = "never"

    def _training(
        self,
        corpus: str,
        tokenizer: str,
        length: int,
        steps: int,
        *,
        schedule_steps: int | None = None,
        text_field: str = "text",
        **others: Any,
    ) -> TextTrainingConfig:
        """Return the configuration of a run of so many steps, in the model's own tokens, on as much text as they take.

        If the run may end before its schedule, `schedule_steps` is the length of that.
        """
        data = DataConfig(
            corpus=corpus,
            text_field=text_field,
            validation_corpus=self.validation_text,
            tokenizer=tokenizer,
            # a row's targets reach one token further, and the last partial row is dropped
            max_tokens=steps * self.batch_size * length + 1,
            max_validation_tokens=self.max_validation_tokens,
            sequence_length=length,
        )
        return TextTrainingConfig(
            data=data,
            steps=schedule_steps or steps,
            stop_step=None if schedule_steps is None else steps,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
            precision=self.precision,
            evaluation_batch_size=self.micro_batch_size or self.batch_size,
            execution=ExecutionConfig(compile=self.compile),
            **others,
        )


@dataclass(frozen=True)
class HealingConfig(FurtherTrainingConfig):
    """How a pruned model is trained on: AdamW without decay, warmup over 10 % of the steps, cosine to 10 %.

    Attributes:
        tokens: Tokens to train on. A text that has fewer is gone through again.
        method: With full all weights are trained, with lora low-rank updates. These are merged in the end, take less
            memory, and forget less (Hu et al. 2021, Gromov et al. 2024).
        learning_rate: The peak of the learning rate. Default: 1e-4 for full, 1e-3 for lora.
        rank: The rank of the updates of lora. Default: 16.
    """

    checked_path: ClassVar[str] = "healing."

    tokens: PositiveInt = 1_000_000
    method: Literal["full", "lora"] = "full"
    learning_rate: PositiveFloat | None = None
    rank: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Raise InputError if a number is out of range, or a rank is given and no low-rank updates are trained."""
        super().__post_init__()
        chosen_low_rank(self.method, self.rank)

    @property
    def low_rank(self) -> LowRankConfig | None:
        """The low-rank updates to train, if any."""
        return chosen_low_rank(self.method, self.rank)

    def recipe(self, corpus: str, tokenizer: str, longest: int = LONGEST_ROW) -> TextTrainingConfig:
        """Return the configuration of the run.

        Args:
            corpus: to train on, as in `mixln train`.
            tokenizer: folder or hub name of the model's.
            longest: tokens of a row that the model takes.

        Raises:
            InputError: `tokens` are fewer than those of one step.
        """
        length = self.sequence_length or longest
        steps = steps_of_tokens(self.tokens, self.batch_size, length, "healing.tokens")
        rate = {"full": 1e-4, "lora": 1e-3}[self.method] if self.learning_rate is None else self.learning_rate
        optimizer = OptimizerConfig(name="adamw", learning_rate=rate, beta2=0.95)
        return self._training(corpus, tokenizer, length, steps, optimizer=optimizer)
