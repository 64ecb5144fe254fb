"""Norms of transformers: those whose weight is the gain itself pass for what they are, and no others."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import GemmaConfig, GemmaForCausalLM, GemmaModel

from mixln.models import ARCHITECTURES, PlacedConfig, register_architecture
from mixln.models.architectures.llama import MixLNLlamaConfig, MixLNLlamaForCausalLM, MixLNLlamaModel
from mixln.models.decoder import PlacedForCausalLM, PlacedModel
from mixln.placement import ArchitectureNorm, PlacementError

MODELS = Path(transformers.__file__).parent / "models"
WIDTH = 8
SAMPLE = {"gemma": False, "gemma3": False, "nemotron": False, "llama": True, "t5": True, "olmo2": True, "cohere": True}


def norm_classes(family: str) -> Iterator[type[nn.Module]]:
    source = MODELS / family / f"modeling_{family}.py"
    names = re.findall(r"^class (\w*(?:RMSNorm|LayerNorm)\w*)\(", source.read_text(encoding="utf-8"), re.MULTILINE)
    if names:
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        yield from (getattr(module, name) for name in names if name in vars(module))


def judged(norm_class: Any) -> bool | None:
    """Whether the weight is a plain gain, by what doubling it does; None: it is no norm of a width alone."""
    eps = 1e-5
    try:
        norm = norm_class(WIDTH, eps=eps)
        parameters = dict(norm.named_parameters())
        x = torch.linspace(-1, 2, 3 * WIDTH).sin().reshape(1, 3, WIDTH)
        for number, parameter in enumerate(parameters.values(), start=1):
            nn.init.constant_(parameter, number)
        if "bias" in parameters:
            nn.init.zeros_(norm.bias)
        with torch.no_grad():
            once, centered = norm(x), bool(torch.allclose(norm(x + 3), norm(x), atol=1e-3))
            is_plain = True
            if "weight" in parameters:
                norm.weight.mul_(2)
                is_plain = bool(torch.allclose(norm(x), 2 * once, rtol=1e-3))
                norm.weight.fill_(1)
            other = (x - x.mean(-1, keepdim=True)) if centered else x
            unit = other / (other.square().mean(-1, keepdim=True) + eps).sqrt()
            is_plain = is_plain and bool(torch.allclose(norm(x), unit, rtol=1e-3, atol=1e-4))
    except (TypeError, AttributeError, RuntimeError, ValueError):
        return None
    if not parameters.keys() <= {"weight", "bias"} or any(one.shape != (WIDTH,) for one in parameters.values()):
        return None
    described = ArchitectureNorm(
        lambda width: norm_class(width, eps=eps), WIDTH, eps, centered, "weight" in parameters, "bias" in parameters
    )
    if is_plain:
        described.check()
    else:
        with pytest.raises(PlacementError, match=f"the norm {norm_class.__name__} does not compute weight"):
            described.check()
    return is_plain


@pytest.mark.parametrize("family", SAMPLE)
def test_only_a_weight_that_is_the_gain_passes_for_one(family: str) -> None:
    assert SAMPLE[family] in [judged(norm_class) for norm_class in norm_classes(family)]


@pytest.mark.slow
def test_every_norm_of_transformers_is_told_by_what_it_computes() -> None:
    found = [
        judged(one)
        for folder in sorted(MODELS.iterdir())
        if (folder / f"modeling_{folder.name}.py").is_file()
        for one in norm_classes(folder.name)
    ]
    assert found.count(True) > 100
    assert found.count(False) > 5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_our_architectures_describe_their_norms(name: str) -> None:
    description = ARCHITECTURES[name].config_class().norm_factory()
    description.check()
    wrong = {"eps": 100 * description.eps, "centered": not description.centered}
    for field, value in (*wrong.items(), ("has_weight", not description.has_weight)):
        with pytest.raises(PlacementError, match="does not compute weight"):
            ArchitectureNorm(**{**vars(description), field: value}).check()


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo"])
def test_norms_are_tried_wherever_the_library_is_first_imported(name: str) -> None:
    description = ARCHITECTURES[name].config_class().norm_factory()
    state = torch.get_rng_state()
    with torch.device("meta"):
        description.check()
    with init_empty_weights():
        description.check()
    torch.set_default_dtype(torch.bfloat16)
    try:
        description.check()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_architecture_whose_norm_is_not_as_described_is_refused() -> None:
    @strict
    class MixLNGemmaConfig(PlacedConfig, GemmaConfig):
        model_type = "mixln_gemma"

    class MixLNGemmaModel(PlacedModel, GemmaModel):
        config_class = MixLNGemmaConfig

    class MixLNGemmaForCausalLM(PlacedForCausalLM, GemmaForCausalLM):
        model_class = MixLNGemmaModel

    with pytest.raises(PlacementError, match=r"GemmaRMSNorm does not compute .*1 \+ weight"):
        register_architecture("gemma", MixLNGemmaForCausalLM)
    assert "gemma" not in ARCHITECTURES


class OwnRulesModel(MixLNLlamaModel):
    """A stack with rules of its own for norms and for its embedding."""

    parameter_roles: ClassVar[Mapping[str, Any]] = MixLNLlamaModel.parameter_roles

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if "RMSNorm" in type(module).__name__:
            nn.init.constant_(module.get_parameter("weight"), 7.0)

    def initialize(self, seed: int) -> Self:
        super().initialize(seed)
        nn.init.constant_(self.embed_tokens.weight, 0.5)
        return self


class OwnRulesForCausalLM(MixLNLlamaForCausalLM):
    model_class = OwnRulesModel


def test_a_model_with_a_head_is_initialised_by_the_rules_of_its_stack() -> None:
    sizes: dict[str, Any] = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = MixLNLlamaConfig(**sizes, num_hidden_layers=2, placement="mix(alpha=0.5)")
    built, plain = OwnRulesForCausalLM(config), MixLNLlamaForCausalLM(config).initialize(3)
    assert (built.model.norm.weight == 7).all()
    again = OwnRulesForCausalLM(config).initialize(3)
    for name, parameter in again.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 7).all(), name
        elif name == "model.embed_tokens.weight":
            assert (parameter == 0.5).all()
        else:
            assert torch.equal(parameter, plain.get_parameter(name)), name
