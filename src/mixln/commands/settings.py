"""Configurations and recipes as plain keyword arguments: `mixln.train(steps=1000, placement="mix", hidden_size=256)`.

A keyword is the name of a field, wherever it stands in a configuration: `hidden_size` is `model.hidden_size`. A whole
part can be given too: `optimizer=OptimizerConfig(name="adamw")`. The TypedDicts below say the same to type checkers;
`tests/commands` holds them equal to the configurations.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

from mixln.checked import Checked
from mixln.data.config import DataConfig
from mixln.errors import InputError
from mixln.placement.words import did_you_mean
from mixln.tasks.recipe import ModelConfig, Recipe
from mixln.tasks.recipes import FIELDS_PAGE, SHORT_NAMES, TOKENS, flat_fields, load_recipe
from mixln.training.config import ExecutionConfig, FaultConfig, OptimizerConfig, WantedPrecision

Config = TypeVar("Config", bound=Checked)


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a configuration with other values of some fields, also of fields of its parts.

    Args:
        config: what is changed; it stays as it is.
        changes: new values, by the names of the fields.

    Raises:
        InputError: there is no such field, or a value is of another type or out of range.
    """
    places = field_places(type(config))
    if unknown := [name for name in changes if name not in places]:
        nearest = did_you_mean(unknown[0], places)
        raise InputError(f"there is no field `{unknown[0]}`.{nearest} Valid: {', '.join(sorted(places))}")
    whole = {name: value for name, value in changes.items() if not places[name]}
    for part in dict.fromkeys(places[name] for name in changes if places[name]):
        own = {name: value for name, value in changes.items() if places[name] == part}
        whole[part] = replace(whole.get(part, getattr(config, part)), **own)
    return replace(config, **whole)


@cache
def field_places(kind: type[Checked]) -> dict[str, str]:
    """Return the names that `changed` takes, and the part that each is a field of; empty: of the whole.

    A name that several parts have stands for none of them.
    """
    hints = get_type_hints(kind)
    own = [field.name for field in fields(kind)]
    places: dict[str, str] = {}
    for part in own:
        inner = [field.name for field in fields(hints[part])] if is_dataclass(hints[part]) else []
        places |= {name: part for name in inner if name not in ("name", *own)}
    return places | dict.fromkeys(own, "")


def settled_recipe(recipe: Recipe | str | Path, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a function was asked for.

    Args:
        recipe: a recipe, the name of a shipped one, or a YAML file.
        changes: fields that differ, by their names, by those of their parts, or by short names.

    Raises:
        InputError: there is no such recipe, or a field is not one, or has a value that is none.
    """
    places = field_places(Recipe)
    known = {*places, *SHORT_NAMES, TOKENS}
    settings: dict[str, Any] = {}
    # parts first: a field that is named itself counts more
    for name, value in sorted(changes.items(), key=lambda change: not isinstance(change[1], Checked | Mapping)):
        if name not in known:
            raise InputError(f"a recipe has no field {name!r}.{did_you_mean(name, known)} {FIELDS_PAGE}")
        if isinstance(value, Checked):
            settings |= flat_fields(value, f"{name}.")
        elif isinstance(value, Mapping):
            settings |= {f"{name}.{field}": own for field, own in value.items()}
        elif name in SHORT_NAMES or not places.get(name):
            settings[name] = value
        else:
            settings[f"{places[name]}.{name}"] = value
    return load_recipe(recipe, {name: fspath(value) for name, value in settings.items()})


def fspath(value: Any) -> Any:
    """Return a path as text, and anything else as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class RecipeFields(TypedDict, total=False):
    """The fields of a `Recipe` and of its parts, as keyword arguments; see there."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    faults: FaultConfig
    execution: ExecutionConfig
    text: str | Path
    validation_text: str | Path | None
    steps: int
    stop_step: int | None
    batch_size: int
    micro_batch_size: int | None
    seed: int
    precision: WantedPrecision
    evaluate_every: int | None
    evaluation_batch_size: int
    architecture: str
    placement: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    initializer_range: float
    embedding_std: float | None
    validation_fraction: float
    text_field: str
    tokenizer: str | Path | None
    vocab_size: int
    tokenizer_training_characters: int
    max_tokens: int | None
    max_validation_tokens: int
    sequence_length: int
    cross_documents: bool
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


class RunFields(RecipeFields, total=False):
    """The fields of a `Recipe`, and the number of token slots to train on, which sets `steps`."""

    tokens: int


class DiagnosisFields(TypedDict, total=False):
    """The fields of a `DiagnosisConfig`, as keyword arguments; see there."""

    sequence_length: int
    batch_size: int
    max_tokens: int
    performance_tokens: int
    gradient_tokens: int
    max_documents: int
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
