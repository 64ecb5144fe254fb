"""Small real text and small recipes for the tests that train."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mixln.data import DataConfig
from mixln.tasks import ModelConfig, Recipe
from mixln.training import OptimizerConfig

SHARED = Path(__file__).resolve().parents[3] / "shared"


def write_corpus(folder: Path, documents: int = 40) -> Path:
    """Write Python's own help topics, one file each, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(topics)[:documents]:
        (folder / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    return folder


def with_begin_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return the same tokenizer with `<s>`, which it puts before every text, as most of Llama's do."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>"])
    begin = backend.token_to_id("<s>")
    assert begin is not None
    backend.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", begin)])
    end = tokenizer.eos_token
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=end, pad_token=end)


def loss_of_packed_tokens(model: PreTrainedModel, documents: list[list[int]], length: int) -> tuple[float, int]:
    """Return total loss and predicted tokens of documents packed into rows, by nothing but the model's own forward.

    Row i is tokens i * length ... of all documents joined, and predicts one token further; what a row holds of a
    document goes through the model alone. A document's first token is not predicted.
    """
    flat = [token for document in documents for token in document]
    first = set(accumulate(map(len, documents), initial=0))
    total, predicted = 0.0, 0
    for start in range(0, len(flat) - 1, length):
        end = min(start + length, len(flat) - 1)
        cuts = [start, *(at for at in range(start + 1, end) if at in first), end]
        for begin, stop in pairwise(cuts):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([flat[begin:stop]])).logits[0]
            for row, at in zip(logits.log_softmax(-1), range(begin + 1, stop + 1), strict=True):
                if at not in first:
                    total, predicted = total - row[flat[at]].item(), predicted + 1
    return total, predicted


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
