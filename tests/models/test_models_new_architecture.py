"""An architecture that this library does not have, added by what stands in this file alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
    Starcoder2ForSequenceClassification,
    Starcoder2Model,
)

import mixln
from mixln.models import ARCHITECTURES, PlacedConfig, register_architecture
from mixln.models.anatomy import find_anatomy
from mixln.models.decoder import LLAMA_ROLES, PlacedForCausalLM, PlacedForSequenceClassification, PlacedModel
from mixln.placement import ArchitectureNorm, ParameterRole


@strict
class MixLNStarcoder2Config(PlacedConfig, Starcoder2Config):
    """Starcoder2 has LayerNorm, biases, and a feed-forward without a gate."""

    model_type = "mixln_starcoder2"
    norm_eps_name = "norm_epsilon"

    def norm_factory(self) -> ArchitectureNorm:
        eps = self.norm_epsilon
        return ArchitectureNorm(
            lambda width: nn.LayerNorm(width, eps=eps), self.hidden_size, eps=eps, centered=True, has_bias=True
        )


class MixLNStarcoder2Model(PlacedModel, Starcoder2Model):
    config_class = MixLNStarcoder2Config
    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = {
        **LLAMA_ROLES,
        "layers.*.mlp.c_fc.weight": "up",
        "layers.*.mlp.c_proj.weight": "down",
    }

    def build_parts(self, *args: Any, **parts: Any) -> None:
        super().build_parts(*args, **parts)
        self.embedding_dropout = self.config.embedding_dropout


class MixLNStarcoder2ForCausalLM(PlacedForCausalLM, Starcoder2ForCausalLM):
    model_class = MixLNStarcoder2Model


class MixLNStarcoder2ForSequenceClassification(PlacedForSequenceClassification, Starcoder2ForSequenceClassification):
    model_class = MixLNStarcoder2Model


@pytest.fixture
def starcoder2() -> Iterator[Starcoder2ForCausalLM]:
    register_architecture("starcoder2", MixLNStarcoder2ForCausalLM, heads=[MixLNStarcoder2ForSequenceClassification])
    config = Starcoder2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = Starcoder2ForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    yield model
    del ARCHITECTURES["starcoder2"]


def test_a_new_architecture_computes_at_its_stock_placement_what_the_stock_one_does(
    starcoder2: Starcoder2ForCausalLM, tmp_path: Path
) -> None:
    ids = torch.arange(24).reshape(2, 12) % 97
    with torch.no_grad():
        expected = starcoder2(input_ids=ids, use_cache=False).logits
        placed, change = mixln.apply_placement(starcoder2, "pre")
        assert isinstance(placed, MixLNStarcoder2ForCausalLM)
        assert change.keeps_function
        assert torch.equal(placed(input_ids=ids, use_cache=False).logits, expected)
        placed.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(loaded(input_ids=ids, use_cache=False).logits, expected)
        other, _ = mixln.apply_placement(starcoder2, "mix(alpha=0.5)+qk_norm")
        assert not torch.equal(other(input_ids=ids, use_cache=False).logits, expected)
    assert torch.equal(mixln.stock_model(placed)(input_ids=ids, use_cache=False).logits, expected)
    assert find_anatomy(placed).final_norm == "model.norm"


@pytest.mark.usefixtures("starcoder2")
def test_its_weights_are_drawn_by_their_roles_and_its_fields_named_as_in_recipes() -> None:
    config = MixLNStarcoder2Config.from_recipe(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        rms_norm_eps=1e-4,
        placement="pre",
    )
    assert config.norm_epsilon == 1e-4
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    model = model.to_empty(device="cpu").initialize(3)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert 0.015 < model.model.layers[1].mlp.c_proj.weight.std() < 0.025
    assert not model.model.layers[1].mlp.c_proj.bias.any()
