"""The recipe of a training run: one typed configuration, written in YAML, overridden from the command line."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError

from mixln.data import DataConfig
from mixln.errors import InputError
from mixln.models import ARCHITECTURES, PlacedConfig
from mixln.placement import PlacementError
from mixln.placement.registry import unknown

_LEAST_LAYER_METRICS_EVERY = 50
"""A measurement takes up to half as long as a step of a small model: so it stays at a hundredth of the time."""


@dataclass(frozen=True)
class ModelConfig:
    """The model of a recipe; the vocabulary comes from the tokenizer.

    Attributes:
        architecture: llama, or another of the library's architectures.
        placement: text form of the norm placement, for example mix(alpha=0.25).
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward's inner layer.
        num_hidden_layers: number of blocks.
        num_attention_heads: number of attention heads; must divide hidden_size.
        num_key_value_heads: number of key-value heads (grouped-query attention); null: as many as heads.
        rms_norm_eps: epsilon of the norms.
        rope_theta: base of the rotary position embedding.
        tie_word_embeddings: whether the head shares the embedding's weights.
        initializer_range: standard deviation of the initial weights where the placement has no rule of its own.
        embedding_std: standard deviation of the initial embedding; null: by the placement's rule for all matrices.
    """

    architecture: str = "llama"
    placement: str = "pre"
    hidden_size: int = 128
    intermediate_size: int = 344
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    embedding_std: float | None = None


@dataclass(frozen=True)
class OptimizerConfig:
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

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 2e-3
    warmup_steps: int | None = None
    final_learning_rate_fraction: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class FaultConfig:
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

    on_non_finite: Literal["stop", "skip", "roll_back"] = "stop"
    on_gradient_spike: Literal["ignore", "stop", "skip", "roll_back"] = "ignore"
    gradient_spike_factor: float = 10.0
    gradient_spike_window: int = 50
    max_faults: int = 20


@dataclass(frozen=True)
class ExecutionConfig:
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

    strategy: Literal["ddp", "fsdp"] = "ddp"
    tensor_parallel_size: int = 1
    activation_checkpointing: bool = False
    compile: Literal["auto", "always", "never"] = "auto"
    checkpoint_every: int | None = None
    keep_last: int = 2
    keep_every: int | None = None
    asynchronous_checkpoints: bool = True
    layer_metrics_every: int | None = None
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run computes, and how. The defaults are the recipe `nano`.

    Attributes:
        model: the model.
        data: corpus, tokenizer and packing.
        optimizer: optimiser and schedule.
        steps: length of the schedule, in optimiser steps.
        stop_step: stop after so many steps of the schedule; null: at its end.
        batch_size: sequences per optimiser step.
        micro_batch_size: sequences per forward and backward; the gradients of a batch are accumulated exactly.
            null: the whole batch at once.
        seed: of the initial weights and of the order of the data.
        precision: float32, or bfloat16 (autocast, float32 weights); auto: bfloat16 where the hardware has it.
        evaluate_every: steps between validations; the last step is always validated. null: 4 times a run.
        evaluation_batch_size: sequences per batch of validation; has no influence on the result.
        faults: what to do when a step goes wrong.
        execution: how the run is carried out. Faults and execution may change when an interrupted run is taken up.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 500
    stop_step: int | None = None
    batch_size: int = 8
    micro_batch_size: int | None = None
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    evaluate_every: int | None = None
    evaluation_batch_size: int = 16
    faults: FaultConfig = field(default_factory=FaultConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    @property
    def last_step(self) -> int:
        """The step after which training ends."""
        return self.steps if self.stop_step is None else self.stop_step

    @property
    def tokens_per_step(self) -> int:
        """Token slots of a batch: batch_size * sequence_length."""
        return self.batch_size * self.data.sequence_length

    @property
    def warmup_steps(self) -> int:
        """Steps of warmup, the default resolved."""
        given = self.optimizer.warmup_steps
        return max(1, self.steps // 10) if given is None else given

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints, the default resolved."""
        return self.execution.checkpoint_every or max(1, self.last_step // 20)

    @property
    def layer_metrics_every(self) -> int:
        """Steps between measurements of every layer, the default resolved; 0: never."""
        given = self.execution.layer_metrics_every
        return max(_LEAST_LAYER_METRICS_EVERY, self.last_step // 20) if given is None else given

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested dictionaries, with the types that JSON has."""
        values = asdict(self)
        values["execution"]["trackers"] = list(self.execution.trackers)
        return values

    def identity(self) -> dict[str, Any]:
        """Return what may not change when an interrupted run is taken up: `to_dict` without execution and faults."""
        return {name: value for name, value in self.to_dict().items() if name not in ("execution", "faults")}

    def check(self) -> Recipe:
        """Return the recipe if its numbers make sense together.

        Raises:
            InputError: one does not; the message names the field.
        """
        positive = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "evaluation_batch_size": self.evaluation_batch_size,
            "micro_batch_size": _one_if_none(self.micro_batch_size),
            "evaluate_every": _one_if_none(self.evaluate_every),
            "faults.gradient_spike_factor": self.faults.gradient_spike_factor,
            "faults.gradient_spike_window": self.faults.gradient_spike_window,
            "execution.checkpoint_every": _one_if_none(self.execution.checkpoint_every),
            "execution.keep_last": self.execution.keep_last,
            "execution.keep_every": _one_if_none(self.execution.keep_every),
            "execution.tensor_parallel_size": self.execution.tensor_parallel_size,
            "stop_step": _one_if_none(self.stop_step),
            "model.hidden_size": self.model.hidden_size,
            "model.intermediate_size": self.model.intermediate_size,
            "model.num_hidden_layers": self.model.num_hidden_layers,
            "model.num_attention_heads": self.model.num_attention_heads,
            "model.num_key_value_heads": _one_if_none(self.model.num_key_value_heads),
            "model.initializer_range": self.model.initializer_range,
            "model.rms_norm_eps": self.model.rms_norm_eps,
            "model.rope_theta": self.model.rope_theta,
            "optimizer.learning_rate": self.optimizer.learning_rate,
            "optimizer.epsilon": self.optimizer.epsilon,
        }
        for name, value in positive.items():
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} must be more than 0, not {value}")
        fractions = {"optimizer.beta1": self.optimizer.beta1, "optimizer.beta2": self.optimizer.beta2}
        for name, value in fractions.items():
            if not 0 <= value < 1:
                raise InputError(f"{name} must be in [0, 1), not {value}")
        not_negative = {
            "optimizer.weight_decay": self.optimizer.weight_decay,
            "optimizer.max_grad_norm": self.optimizer.max_grad_norm,
            "optimizer.final_learning_rate_fraction": self.optimizer.final_learning_rate_fraction,
            "optimizer.warmup_steps": self.warmup_steps,
            "seed": self.seed,
            "faults.max_faults": self.faults.max_faults,
            "execution.layer_metrics_every": self.execution.layer_metrics_every or 0,
        }
        for name, value in not_negative.items():
            if not value >= 0:
                raise InputError(f"{name} must not be negative, but is {value}")
        if self.last_step > self.steps:
            raise InputError(f"stop_step ({self.stop_step}) is after the last of the {self.steps} steps")
        if self.warmup_steps > self.steps:
            raise InputError(f"optimizer.warmup_steps ({self.warmup_steps}) is more than the {self.steps} steps")
        # the vocabulary is not known yet; everything else about the model is checked before any work is done
        model_config(self, vocab_size=257)
        return self


def _one_if_none(value: int | None) -> int:
    return 1 if value is None else value


def model_config(
    recipe: Recipe, vocab_size: int, bos_token_id: int | None = None, eos_token_id: int | None = None
) -> PlacedConfig:
    """Return the model configuration of a recipe for a tokenizer with so many tokens.

    Raises:
        PlacementError: the placement is not one.
        InputError: the sizes do not fit together, or the placement does not fit the number of layers.
    """
    model = recipe.model
    if model.architecture not in ARCHITECTURES:
        raise InputError(f"model.architecture: {unknown('architecture', model.architecture, ARCHITECTURES)}")
    config_class, defaults = ARCHITECTURES[model.architecture].config_class, ModelConfig()
    fields: dict[str, Any] = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        # what the architecture does not have, and nobody has set
        if not (
            config_class.recipe_names.get(field.name, field.name) is None
            and getattr(model, field.name) == getattr(defaults, field.name)
        )
    }
    del fields["architecture"]
    if "rope_theta" in fields and config_class.recipe_names.get("rope_theta", "") is not None:
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    try:
        return config_class.from_recipe(
            **fields,
            vocab_size=vocab_size,
            max_position_embeddings=recipe.data.sequence_length,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=None,
        )
    except PlacementError:
        raise
    except (StrictDataclassError, ValueError) as error:
        # the reason stands behind a line about the validator
        raise InputError(f"model: {error.__cause__ or error}") from error
