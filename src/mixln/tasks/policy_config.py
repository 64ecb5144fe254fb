"""The settings of policy training against a reward (RLHF)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from mixln.checked import Checked, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range
from mixln.errors import InputError
from mixln.tasks.healing_config import LowRankConfig, chosen_low_rank
from mixln.training.config import WantedPrecision


@dataclass(frozen=True)
class RLHFConfig(Checked):
    """How a policy is trained against a reward: RLOO of TRL, AdamW, warmup over 10 % of the steps, cosine to 0.

    Attributes:
        epochs: How often the prompts are gone through. Parts of an epoch are allowed.
        steps: Updates of the policy. Default: as many as the epochs take.
        prompts_per_step: Prompts of an update.
        completions_per_prompt: Completions that are sampled of each. The baseline of one is the mean reward of the
            others, so there are at least 2.
        micro_batch_size: Completions of a forward and backward. Default: all of the step's.
        method: full trains all weights. lora trains low-rank updates (Hu et al. 2021), which are merged in the end.
        learning_rate: The peak of the learning rate. Default: 2e-6 for full, 2e-5 for lora, a tenth of fine-tuning's,
            whatever the model's size.
        beta: The weight of the KL divergence to the start, which is taken off the reward. At 0 nothing holds the
            policy to the start.
        reward_clip: Rewards beyond this, of either sign, count as this in training. Default: as they are.
        missing_end_penalty: Taken off the reward of a completion that did not end, in training.
        rank: Of the updates of lora. Default: 16.
        temperature: Of the sampling, in training and where held-out prompts are completed.
        top_p: Sample from the likeliest tokens whose probabilities add up to this. RLOO takes the samples for draws
            from the whole distribution, which they are at 1 alone.
        max_new_tokens: Tokens of a completion at most.
        too_long: What is done with prompts that leave no room for a completion: refuse or drop.
        validation_fraction: The share of the prompts that is held out.
        max_validation_prompts: Held-out prompts that are completed, at most.
        samples: Completions of each held-out prompt.
        greedy: Complete held-out prompts by the likeliest token each time, so that there is one completion of each.
        evaluation_batch_size: Completions that are sampled or scored together.
        seed: Of the order of the prompts, and of all sampling.
        precision: float32, bfloat16, or auto, which is bfloat16 on a GPU that has it. Weights stay float32.
        checkpoint_every: Steps from one checkpoint to the next. Default: 10 checkpoints in a run.
    """

    checked_path: ClassVar[str] = ""

    epochs: PositiveFloat = 1.0
    steps: PositiveInt | None = None
    prompts_per_step: PositiveInt = 16
    completions_per_prompt: Annotated[int, Range(low=2)] = 4
    micro_batch_size: PositiveInt | None = None
    method: Literal["full", "lora"] = "full"
    learning_rate: PositiveFloat | None = None
    beta: NonNegativeFloat = 0.05
    reward_clip: PositiveFloat | None = None
    missing_end_penalty: NonNegativeFloat = 0.0
    rank: PositiveInt | None = None
    temperature: Annotated[float, Range(low=0.001, high=100)] = 1.0
    top_p: Annotated[float, Range(above=0, high=1)] = 1.0
    max_new_tokens: PositiveInt = 128
    too_long: Literal["refuse", "drop"] = "refuse"
    validation_fraction: Annotated[float, Range(low=0, high=1)] = 0.1
    max_validation_prompts: Annotated[int, Range(low=2)] = 500
    samples: PositiveInt = 4
    greedy: bool = False
    evaluation_batch_size: PositiveInt = 32
    seed: NonNegativeInt = 0
    precision: WantedPrecision = "auto"
    checkpoint_every: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen_low_rank(self.method, self.rank)
        if self.seed >= 2**32:
            raise InputError(f"`seed` must be below 2^32, not {self.seed}")
        if self.micro_batch_size is not None and self.completions_per_step % self.micro_batch_size:
            raise InputError(
                f"`micro_batch_size` ({self.micro_batch_size}) does not divide the {self.completions_per_step} "
                f"completions of a step (`prompts_per_step` {self.prompts_per_step} x `completions_per_prompt` "
                f"{self.completions_per_prompt}). Choose a divisor"
            )

    @property
    def completions_per_step(self) -> int:
        """How many completions an update is made of."""
        return self.prompts_per_step * self.completions_per_prompt

    @property
    def low_rank(self) -> LowRankConfig | None:
        """The low-rank updates to train, if any."""
        return chosen_low_rank(self.method, self.rank)

    @property
    def peak_learning_rate(self) -> float:
        """What `learning_rate` says, or its default."""
        return {"full": 2e-6, "lora": 2e-5}[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def samples_per_prompt(self) -> int:
        """Completions of each held-out prompt."""
        return 1 if self.greedy else self.samples

    def num_steps(self, prompts: int) -> int:
        """Return how many updates are made.

        Args:
            prompts: that are trained on.
        """
        return self.steps or math.ceil(self.epochs * prompts / self.prompts_per_step)

    def describe_sampling(self) -> str:
        """Return in words how held-out prompts are completed."""
        if self.greedy:
            how = "greedy (the likeliest token each time)"
        else:
            how = f"{self.samples} sampled at temperature {self.temperature:g}, top-p {self.top_p:g}"
        return f"{how}, up to {self.max_new_tokens} new tokens, seed {self.seed}"
