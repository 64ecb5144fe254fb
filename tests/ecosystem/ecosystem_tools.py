"""Tiny models of any architecture and placement, and short texts to train them on."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from mixln.models import language_models
from mixln.models.decoder import PlacedForCausalLM
from mixln.tasks import ModelConfig, model_config

PLACEMENTS = ["mix(alpha=0.5)", "hybrid", "pre+qk_norm+gpas", "admin"]
"""A mixture of two kinds of block, norms inside attention, a learned gate, a learned factor."""

OTHER_ARCHITECTURES = [
    name if name in ("gpt2", "olmo2") else pytest.param(name, marks=pytest.mark.slow)
    for name in language_models()
    if name != "llama"
]
"""All but Llama, which the placements above are tested with; two that differ most from it are enough for every day."""

STEPS = 20
LENGTH = 64


def build(placement: str, vocab_size: int, architecture: str = "llama", **fields: Any) -> PlacedForCausalLM:
    """A model of four small layers, the same every time; `fields` are those of a recipe's model."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    model = ModelConfig(architecture=architecture, placement=placement, **(sizes | fields))
    config = model_config(model, 4 * LENGTH, vocab_size)  # pairs of dialogues are longer than a row
    built = language_models()[architecture].whole_class(config)
    assert isinstance(built, PlacedForCausalLM)
    return built.initialize(0)


def grown(model: PlacedForCausalLM) -> PlacedForCausalLM:
    """Move every parameter so far from where it starts that leaving any of them out would be seen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.2 * noise)
    return model.eval()


def load(folder: Path) -> PlacedForCausalLM:
    """Open a folder as anyone would."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, PlacedForCausalLM)
    return model


def token_rows(tokenizer: PreTrainedTokenizerBase, rows: int = 64, length: int = 32) -> Dataset:
    """Rows of real text, all of one length."""
    ids = tokenizer("\n".join(topics[name] for name in sorted(topics)[:20]))["input_ids"]
    assert len(ids) >= rows * length
    cut = [ids[start : start + length] for start in range(0, rows * length, length)]
    return Dataset.from_dict({"input_ids": cut, "labels": cut})


def losses_fell(log: list[dict[str, Any]], by: float) -> bool:
    """Whether the mean of a trainer's last five losses is below that of its first five."""
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == STEPS
    return sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - by


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name
