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
        name: The optimiser: adam, or adamw, whose weight decay is decoupled.
        learning_rate: The peak of the learning rate.
        warmup_steps: Steps of linear warmup. Default: 10 % of the steps (Mix-LN, table 9).
        final_learning_rate_fraction: The learning rate at the end, as a fraction of the peak.
        beta1: The decay of the first moment.
        beta2: The decay of the second moment.
        epsilon: The number that is added to the denominator.
        weight_decay: The weight decay of matrices. Norms and biases have none, and what else the task leaves out.
        max_grad_norm: Gradients are clipped to this L2 norm over all parameters. With 0 they are not clipped.
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
        on_non_finite: What to do when the loss or the gradient norm is infinite or not a number. A validation loss that
            is so ends the run, but with skip only the last one does.
        on_gradient_spike: What to do when the gradient norm is above `gradient_spike_factor` times its running median.
            With ignore no spike is looked for.
        gradient_spike_factor: A gradient norm above so many times its running median is a spike.
        gradient_spike_window: The running median is over so many steps, and no spike is seen before.
        max_faults: The run stops after so many faults, whatever the policy is.
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
        strategy: How the processes that torchrun starts share the work. With ddp each holds the whole model. With fsdp
            each holds a part of every weight, its gradient and its optimiser state (FSDP2).
        tensor_parallel_size: As many neighbouring processes split every matrix among them. It must divide their number.
        activation_checkpointing: Compute each block's activations again in the backward pass instead of keeping them.
        compile: Whether to compile the model. With auto it is compiled if the run is long enough to earn the time back.
            A resumed run goes on as it began.
        checkpoint_every: Steps between checkpoints, from which an interrupted run goes on. Default: 20 times a run.
        keep_last: As many of the latest checkpoints are kept. With 2, a damaged one does not end the run.
        keep_every: Keep every checkpoint whose step is a multiple of this too. Default: none.
        asynchronous_checkpoints: Write checkpoints while training goes on.
        layer_metrics_every: Steps between measurements of every layer. With 0 there are none. Default: 20 times a run,
            but not more often than every 50 steps.
        trackers: Where metrics go beside metrics.jsonl.
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
        optimizer: The optimiser and its schedule.
        steps: Optimiser steps of the whole schedule.
        stop_step: Stop after so many steps of the schedule. Default: at its end.
        batch_size: Rows, which are sequences or images, of a step.
        micro_batch_size: Rows of a forward and backward pass. The gradients of a batch are accumulated exactly.
            Default: the whole batch.
        seed: The seed of the initial weights and of the order of the data.
        precision: Compute in float32, bfloat16, or auto. With bfloat16 the weights stay float32
            (autocast). With auto it is bfloat16 where that is clearly faster on this machine.
        evaluate_every: Steps between validations. The last step is always validated. Default: 4 times a run.
        evaluation_batch_size: Rows of a batch of validation. It has no influence on the result.
        faults: What to do when a step goes wrong.
        execution: How the run is carried out. Faults and execution may change when an interrupted run is taken up.
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
        return _as_json(asdict(self))


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(one) for name, one in value.items()}
    return [_as_json(one) for one in value] if isinstance(value, tuple) else value
