"""The keyword arguments of functions, for type checkers and completion; `tests/commands` holds them equal to the
configurations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

from mixln.data.config import DataConfig
from mixln.data.image_config import AugmentationConfig, ImageDataConfig
from mixln.tasks.image_config import VisionModelConfig
from mixln.tasks.recipe import ModelConfig
from mixln.training.config import ExecutionConfig, FaultConfig, OptimizerConfig, WantedPrecision


class CommonFields(TypedDict, total=False):
    """The fields that recipes of all kinds have, and their parts, as keyword arguments."""

    optimizer: OptimizerConfig
    faults: FaultConfig
    execution: ExecutionConfig
    steps: int
    stop_step: int | None
    batch_size: int
    micro_batch_size: int | None
    seed: int
    precision: WantedPrecision
    evaluate_every: int | None
    evaluation_batch_size: int
    placement: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    initializer_range: float
    embedding_std: float | None
    learning_rate: float
    warmup_steps: int | None
    final_learning_rate_fraction: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    max_grad_norm: float
    on_non_finite: Literal["stop", "skip", "roll_back"]
    on_gradient_spike: Literal["ignore", "stop", "skip", "roll_back"]
    gradient_spike_factor: float
    gradient_spike_window: int
    max_faults: int
    strategy: Literal["ddp", "fsdp"]
    tensor_parallel_size: int
    activation_checkpointing: bool
    compile: Literal["auto", "always", "never"]
    checkpoint_every: int | None
    keep_last: int
    keep_every: int | None
    asynchronous_checkpoints: bool
    layer_metrics_every: int | None
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...]


class LanguageFields(TypedDict, total=False):
    """The fields that recipes of language models alone have."""

    text: str | Path
    validation_text: str | Path | None
    architecture: str
    num_key_value_heads: int | None
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    validation_fraction: float
    text_field: str
    tokenizer: str | Path | None
    vocab_size: int
    tokenizer_training_characters: int
    max_tokens: int | None
    max_validation_tokens: int
    sequence_length: int
    cross_documents: bool


class ImageFields(TypedDict, total=False):
    """The fields that recipes of classifiers of images alone have."""

    augmentation: AugmentationConfig
    ema_decay: float | None
    images: str | Path
    image_column: str | None
    label_column: str | None
    validation_split: str | None
    workers: int
    image_size: int
    patch_size: int
    pooling: Literal["class_token", "mean"]
    drop_path_rate: float
    layer_scale_init_value: float | None
    layer_norm_eps: float
    crop: Literal["pad", "resized", "none"]
    flip: float
    auto_augment: str | None
    color_jitter: float
    erasing: float
    mixup: float
    cutmix: float
    label_smoothing: float
    crop_fraction: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class RecipeFields(CommonFields, LanguageFields, total=False):
    """The fields of a `Recipe` and of its parts, as keyword arguments; see there."""

    model: ModelConfig
    data: DataConfig


class RunFields(CommonFields, LanguageFields, ImageFields, total=False):
    """The fields of recipes of all kinds, and the number of token slots to train on, which sets `steps`."""

    model: ModelConfig | VisionModelConfig
    data: DataConfig | ImageDataConfig
    tokens: int


class DiagnosisFields(TypedDict, total=False):
    """The fields of a `DiagnosisConfig`, as keyword arguments; see there."""

    sequence_length: int
    batch_size: int
    max_tokens: int
    performance_tokens: int
    gradient_tokens: int
    max_documents: int
    max_images: int
    performance_images: int
    gradient_images: int
    run_lengths: Sequence[int]
    measures: Sequence[str] | None
    fresh_gradients: bool
    interpretability_tokens: int
    interpretability_prompts: int
    stack: str | None


class NormRemovalFields(TypedDict, total=False):
    """The fields of a `NormRemovalConfig`, as keyword arguments; see there."""

    schedule: str
    steps: int | None
    first_step: int | None
    feed_forward_gap: int | None
    query_key_gap: int | None
    value_gap: int | None
    final_gap: int | None
    end_of_text_gap: int | None
    first_layer: int | None
    learning_rate: float | None
    warmup_steps: int | None
    auxiliary_weight: float
    on_spike: Literal["wait", "roll_back", "stop"]
    spike_threshold: float
    text_field: str
    evaluate_every: int | None
    batch_size: int
    micro_batch_size: int | None
    sequence_length: int | None
    validation_text: str | Path | None
    max_validation_tokens: int
    seed: int
    precision: WantedPrecision
    compile: Literal["always", "never"]


class RLHFFields(TypedDict, total=False):
    """The fields of a `RLHFConfig`, as keyword arguments; see there."""

    epochs: float
    steps: int | None
    prompts_per_step: int
    completions_per_prompt: int
    micro_batch_size: int | None
    method: Literal["full", "lora"]
    learning_rate: float | None
    beta: float
    reward_clip: float | None
    missing_end_penalty: float
    rank: int | None
    temperature: float
    top_p: float
    max_new_tokens: int
    too_long: Literal["refuse", "drop"]
    validation_fraction: float
    max_validation_prompts: int
    samples: int
    greedy: bool
    evaluation_batch_size: int
    seed: int
    precision: WantedPrecision
    checkpoint_every: int | None


class FineTuningFields(TypedDict, total=False):
    """The fields of a `FineTuningConfig`, as keyword arguments; see there."""

    epochs: float
    batch_size: int
    micro_batch_size: int | None
    sequence_length: int | None
    method: Literal["full", "lora"]
    learning_rate: float | None
    weight_decay: float
    rank: int | None
    too_long: Literal["refuse", "drop", "cut"]
    validation_fraction: float
    seed: int
    precision: WantedPrecision
    compile: Literal["always", "never"]
    checkpoint_every: int | None


class RewardFields(TypedDict, total=False):
    """The fields of a `RewardConfig`, as keyword arguments; see there."""

    epochs: float
    batch_size: int
    micro_batch_size: int | None
    sequence_length: int | None
    learning_rate: float
    weight_decay: float
    center: float
    too_long: Literal["drop", "cut", "refuse"]
    unusable: Literal["drop", "refuse"]
    validation_fraction: float
    seed: int
    precision: WantedPrecision
    checkpoint_every: int | None
