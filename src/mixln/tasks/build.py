"""From a recipe to its model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mixln.errors import InputError
from mixln.models import PlacedConfig, PlacedPreTrainedModel, language_models
from mixln.placement import PlacementError
from mixln.placement.words import unknown
from mixln.tasks.recipe import ModelConfig, Recipe


def check_model(recipe: Recipe) -> Recipe:
    """Return the recipe if its model can be built, which needs the library of models; the rest is checked already.

    Raises:
        PlacementError, InputError: as `model_config`.
    """
    # the vocabulary is not known yet
    model_config(recipe.model, recipe.data.sequence_length, vocab_size=257)
    return recipe


def model_config(
    model: ModelConfig,
    sequence_length: int,
    vocab_size: int,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> PlacedConfig:
    """Return the model configuration of a recipe for rows so long, and a tokenizer with so many tokens.

    Raises:
        PlacementError: the placement is not one.
        InputError: the sizes do not fit together, or the placement does not fit the number of layers.
    """
    known = language_models()
    if model.architecture not in known:
        raise InputError(f"model.architecture: {unknown('architecture', model.architecture, known)}")
    config_class, defaults = known[model.architecture].config_class, ModelConfig()
    # without what the architecture does not have, unless somebody has set it
    fields: dict[str, Any] = {
        name: value
        for name, value in vars(model).items()
        if config_class.recipe_name(name) is not None or value != getattr(defaults, name)
    }
    del fields["architecture"]
    if "rope_theta" in fields and config_class.recipe_name("rope_theta") is not None:
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    with naming_wrong_sizes():
        return config_class.from_recipe(
            **fields,
            vocab_size=vocab_size,
            max_position_embeddings=sequence_length,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=None,
        )


@contextmanager
def naming_wrong_sizes() -> Iterator[None]:
    """Say of a config that cannot be built why; a wrong placement says it itself.

    Raises:
        PlacementError, InputError: instead of what the config raises.
    """
    try:
        yield
    except PlacementError:
        raise
    except (StrictDataclassError, ValueError) as error:
        # the reason stands behind a line about the validator
        raise InputError(f"model: {error.__cause__ or error}") from error


def build_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, device: torch.device | str = "cpu"
) -> PlacedPreTrainedModel:
    """Return the recipe's model with its initial weights, which depend on (seed, parameter name) alone.

    Raises:
        InputError: the model's sizes do not fit together.
    """
    return materialize(model_without_weights(recipe, tokenizer), recipe.seed, device)


def model_without_weights(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PlacedPreTrainedModel:
    """Return the recipe's model on the meta device.

    Raises:
        InputError: the model's sizes do not fit together.
    """
    bos, eos = (token if isinstance(token, int) else None for token in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    config = model_config(recipe.model, recipe.data.sequence_length, len(tokenizer), bos, eos)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert isinstance(model, PlacedPreTrainedModel)
    return model


def materialize(model: PlacedPreTrainedModel, seed: int, device: torch.device | str) -> PlacedPreTrainedModel:
    """Give a model on the meta device its memory and initial weights; of a sharded one, this process's part."""
    model.to_empty(device=device)
    model.tie_weights()
    model.initialize(seed)
    model.train()
    return model
