"""The settings of training a reward model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from mixln.checked import Checked, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range
from mixln.errors import InputError
from mixln.training.config import WantedPrecision


@dataclass(frozen=True)
class RewardConfig(Checked):
    """How a reward model is trained on pairs: AdamW, warmup over 10 % of the steps, cosine to 0.

    Attributes:
        epochs: How often the pairs are gone through. Parts of an epoch are allowed.
        batch_size: Pairs of a step.
        micro_batch_size: Pairs of a forward and backward. Default: all of the step's.
        sequence_length: Tokens of a prompt with its answer, the end token included. Default: 512, or as many as the
            model takes.
        learning_rate: The peak of the learning rate.
        weight_decay: Of AdamW.
        center: The weight of the mean of (r_chosen + r_rejected)^2, which draws rewards to zero (Eisenstein et al.
            2023). The loss alone says nothing of their level.
        too_long: What is done with pairs that are longer: drop leaves them out, cut cuts off the beginning of the
            prompt, refuse is an error. They are counted.
        unusable: What is done with pairs that have an empty answer or two equal ones: refuse, or drop. They are
            counted.
        validation_fraction: The share of the prompts that is held out, with all of their pairs.
        seed: Of the new head, of the order of the pairs, and of all other random numbers.
        precision: As in a recipe.
        checkpoint_every: Steps from one checkpoint to the next. Default: 10 checkpoints in a run.
    """

    checked_path: ClassVar[str] = ""

    epochs: PositiveFloat = 1.0
    batch_size: PositiveInt = 8
    micro_batch_size: PositiveInt | None = None
    sequence_length: PositiveInt | None = None
    learning_rate: PositiveFloat = 2e-5
    weight_decay: NonNegativeFloat = 0.0
    center: NonNegativeFloat = 0.0
    too_long: Literal["drop", "cut", "refuse"] = "drop"
    unusable: Literal["drop", "refuse"] = "refuse"
    validation_fraction: Annotated[float, Range(above=0, below=1)] = 0.1
    seed: NonNegativeInt = 0
    precision: WantedPrecision = "auto"
    checkpoint_every: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Raise InputError if a number is out of range, or numbers make no sense together."""
        super().__post_init__()
        if self.seed >= 2**32:
            raise InputError(f"`seed` must be below 2^32, not {self.seed}")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise InputError(
                f"`micro_batch_size` ({self.micro_batch_size}) does not divide `batch_size` ({self.batch_size})"
            )

    def steps(self, pairs: int) -> int:
        """Return the number of steps.

        Args:
            pairs: of an epoch.
        """
        return math.ceil(self.epochs * pairs / self.batch_size)
