"""The names of the parameters that a placement brings into a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import lcm

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from mixln.models.llama import MixLNLlamaConfig
from mixln.placement import Placement

_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.*)")


@dataclass(frozen=True)
class PlacementParameters:
    """What a placement adds to the matrices of a model: norms, gates, learned scales.

    Attributes:
        blocks: for each block the names of its own, within the block.
        outside: the names of the others.
    """

    blocks: tuple[tuple[str, ...], ...]
    outside: tuple[str, ...]


def list_placement_parameters(placement: str, num_layers: int) -> PlacementParameters:
    """Return the names of all parameters of a placed Llama but its matrices. No weights are made.

    Raises:
        PlacementError: a placement that there is not, or that does not fit the layers.
    """
    plan = Placement.parse(placement).plan(num_layers)
    # two heads of a width that every number of groups divides
    width = 4 * lcm(*(norm.groups for norm in plan.norms))
    config = MixLNLlamaConfig(
        vocab_size=2,
        hidden_size=width,
        intermediate_size=2,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        placement=placement,
    )
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    blocks: list[list[str]] = [[] for _ in range(num_layers)]
    outside: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            continue
        match = _BLOCK.fullmatch(name)
        (outside if match is None else blocks[int(match[1])]).append(name if match is None else match[2])
    return PlacementParameters(tuple(map(tuple, blocks)), tuple(outside))
