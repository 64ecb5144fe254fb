"""The configuration of a training run: what the engine computes, and how; not what is trained (see `mixln.tasks`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from mixln.checked import Checked, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from mixln.errors import InputError

WantedPrecision = Literal["auto", "float32", "bfloat16"]

_LEAST_LAYER_METRICS_EVERY = 50
"""A measurement takes up to half as long as a step of a small model: so it stays at a hundredth of the time."""


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """Optimiser and learning-rate schedule.

    The learning rate rises linearly over the warmup, then falls along a cosine to `final_learning_rate_fraction` of
    the peak at the last of `steps` steps.

    Attributes:
        name: adam, or adamw (decoupled weight decay).
        learning_rate: the peak.
        warmup_steps: steps of linear warmup; null: 10 % of the steps (Mix-LN, table 9).
        final_learning_rate_fraction: the learning rate at the end, as a fraction of the peak.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the denominator.
        weight_decay: applied to matrices only, not to norms and biases.
        max_grad_norm: gradients are clipped to this L2 norm over all parameters; 0: not clipped.
    """

    checked_path: ClassVar[str] = "optimizer."

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: PositiveFloat = 2e-3
    warmup_steps: NonNegativeInt | None = None
    final_learning_rate_fraction: NonNegativeFloat = 0.1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: NonNegativeFloat = 1.0

    def warmup(self, steps: int) -> int:
        """Return the steps of warmup in a schedule of so many steps, the default resolved."""
        return max(1, steps // 10) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True)
class FaultConfig(Checked):
    """What to do when a step goes wrong: stop the run, skip the step, or roll back to the last checkpoint and skip it.

    Attributes:
        on_non_finite: when the loss or the gradient norm is infinite or not a number. A validation loss that is so ends
            the run, but with skip only the last one does.
        on_gradient_spike: when the gradient norm is above `gradient_spike_factor` times its running median; ignore: not
            looked for.
        gradient_spike_factor: see above.
        gradient_spike_window: the number of steps that the running median is over; no spike is seen before so many.
        max_faults: stop the run after so many faults whatever the policy.
    """

    checked_path: ClassVar[str] = "faults."

    on_non_finite: Literal["stop", "skip", "roll_back"] = "stop"
    on_gradient_spike: Literal["ignore", "stop", "skip", "roll_back"] = "ignore"
    gradient_spike_factor: PositiveFloat = 10.0
    gradient_spike_window: PositiveInt = 50
    max_faults: NonNegativeInt = 20


@dataclass(frozen=True)
class ExecutionConfig(Checked):
    """How a run is carried out. None of it changes what is computed, beyond rounding; so it may change on resuming.

    Attributes:
        strategy: how the processes that torchrun starts share the work. ddp: each holds the whole model; fsdp: each
            holds a part of every weight, its gradient and its optimiser state (FSDP2).
        tensor_parallel_size: so many neighbouring processes split every matrix among them; must divide their number.
        activation_checkpointing: compute each block's activations again in the backward pass instead of keeping them.
        compile: whether to compile the model; auto: if the run is long enough to earn the time back. Decided once: a
            resumed run goes on as it began.
        checkpoint_every: steps between checkpoints from which an interrupted run goes on; null: 20 times a run.
        keep_last: how many of the latest checkpoints to keep, at least 1; with 2, a damaged one does not end the run.
        keep_every: keep also every checkpoint whose step is a multiple of this; null: none.
        asynchronous_checkpoints: write checkpoints while training goes on.
        layer_metrics_every: steps between measurements of every layer; null: 20 times a run, but not more often than
            every 50 steps; 0: never.
        trackers: where metrics go beside metrics.jsonl.
    """

    checked_path: ClassVar[str] = "execution."

    strategy: Literal["ddp", "fsdp"] = "ddp"
    tensor_parallel_size: PositiveInt = 1
    activation_checkpointing: bool = False
    compile: Literal["auto", "always", "never"] = "auto"
    checkpoint_every: PositiveInt | None = None
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None
    asynchronous_checkpoints: bool = True
    layer_metrics_every: NonNegativeInt | None = None
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        """Raise InputError if a value is out of range, or values do not go together."""
        super().__post_init__()
        if self.tensor_parallel_size > 1 and self.strategy != "fsdp":
            raise InputError("execution.tensor_parallel_size goes with execution.strategy fsdp, not with ddp")


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """What decides what any training run computes, whatever it trains, and how.

    Attributes:
        optimizer: optimiser and schedule.
        steps: length of the schedule, in optimiser steps.
        stop_step: stop after so many steps of the schedule; null: at its end.
        batch_size: rows (sequences, images) per optimiser step.
        micro_batch_size: rows per forward and backward; the gradients of a batch are accumulated exactly.
            null: the whole batch at once.
        seed: of the initial weights and of the order of the data.
        precision: float32, or bfloat16 (autocast, float32 weights); auto: bfloat16 where it is clearly faster here.
        evaluate_every: steps between validations; the last step is always validated. null: 4 times a run.
        evaluation_batch_size: rows per batch of validation; has no influence on the result.
        faults: what to do when a step goes wrong.
        execution: how the run is carried out. Faults and execution may change when an interrupted run is taken up.
    """

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: PositiveInt = 500
    stop_step: PositiveInt | None = None
    batch_size: PositiveInt = 8
    micro_batch_size: PositiveInt | None = None
    seed: NonNegativeInt = 0
    precision: WantedPrecision = "auto"
    evaluate_every: PositiveInt | None = None
    evaluation_batch_size: PositiveInt = 16
    faults: FaultConfig = field(default_factory=FaultConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        """Raise InputError if a number is out of range, or numbers make no sense together."""
        super().__post_init__()
        if self.last_step > self.steps:
            raise InputError(f"stop_step ({self.stop_step}) is after the last of the {self.steps} steps")
        if self.warmup_steps > self.steps:
            raise InputError(f"optimizer.warmup_steps ({self.warmup_steps}) is more than the {self.steps} steps")

    @property
    def last_step(self) -> int:
        """The step after which training ends."""
        return self.steps if self.stop_step is None else self.stop_step

    @property
    def warmup_steps(self) -> int:
        """Steps of warmup, the default resolved."""
        return self.optimizer.warmup(self.steps)

    @property
    def evaluation_interval(self) -> int:
        """Steps between validations, the default resolved."""
        return self.evaluate_every or max(1, self.last_step // 4)

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints, the default resolved."""
        return self.execution.checkpoint_every or max(1, self.last_step // 20)

    @property
    def layer_metrics_every(self) -> int:
        """Steps between measurements of every layer, the default resolved; 0: never."""
        given = self.execution.layer_metrics_every
        return max(_LEAST_LAYER_METRICS_EVERY, self.last_step // 20) if given is None else given

    def rows_of_a_forward(self, shares: int) -> int:
        """Return the rows that one process takes at once, if so many share each batch."""
        return max(1, min(self.micro_batch_size or self.batch_size, self.batch_size // shares))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as nested dictionaries, with the types that JSON has."""
        values = asdict(self)
        values["execution"]["trackers"] = list(self.execution.trackers)
        return values
