"""The names that a placement's page gives, against those of a model."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest
import torch
from transformers import AutoModelForCausalLM

from mixln import MixLNLlamaConfig
from mixln.placement import Placement, list_modifiers, list_schemes
from mixln.placement.parameter_names import block_parameters, outside_parameters

PLACEMENTS = [
    *list_schemes(),
    *(f"pre+{name}" for name in list_modifiers()),
    "admin+qk_norm(per_head=false)",
    "mix(alpha=0.5)+gpas",
    "sandwich+derf",
]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_names_are_those_of_a_model(placement: str) -> None:
    plan = Placement.parse(placement).plan(3)
    config = MixLNLlamaConfig(
        vocab_size=2,
        hidden_size=16 * 3,
        intermediate_size=2,
        num_hidden_layers=3,
        num_attention_heads=2,
        placement=placement,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names: dict[int | None, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            block = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
            names[None if block is None else int(block[1])].append(name if block is None else block[2])
    assert outside_parameters(plan) == names[None]
    assert [block_parameters(block) for block in plan.blocks] == [names[number] for number in range(3)]
