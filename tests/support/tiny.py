"""Small real text and small recipes for the tests that train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mixln.data import DataConfig
from mixln.training import ModelConfig, OptimizerConfig, Recipe

SHARED = Path(__file__).resolve().parents[3] / "shared"


def write_corpus(folder: Path, documents: int = 40) -> Path:
    """Write Python's own help topics, one file each, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(topics)[:documents]:
        (folder / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    return folder


def tiny_llama(tokenizer: PreTrainedTokenizerFast, num_hidden_layers: int, **fields: Any) -> LlamaForCausalLM:
    """Return transformers' own Llama, with weights so large that its layers matter; the same every time."""
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
    }
    config = LlamaConfig(**values | fields)
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def save_tiny_llama(folder: Path, tokenizer: PreTrainedTokenizerFast, num_hidden_layers: int, **fields: Any) -> Path:
    """Write it with the tokenizer, and return the folder."""
    tiny_llama(tokenizer, num_hidden_layers, **fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_recipe(corpus: Path, **changes: object) -> Recipe:
    """Return a recipe that trains in seconds; `changes` are fields of `Recipe`."""
    recipe = Recipe(
        model=ModelConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4),
        data=DataConfig(
            corpus=str(corpus),
            vocab_size=400,
            sequence_length=64,
            validation_fraction=0.2,
            max_validation_tokens=2000,
        ),
        optimizer=OptimizerConfig(learning_rate=5e-3),
        steps=12,
        batch_size=4,
        precision="float32",
    )
    values: dict[str, Any] = changes
    return replace(recipe, **values)
