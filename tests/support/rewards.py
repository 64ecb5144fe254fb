"""Small rewards: a model with a head of one label, and functions in a file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from mixln.models.classifier import give_padding_token

COMPLETION = {"name": "completion", "prompt": "{{ prompt }}", "answer": "{{ completion }}"}
"""Prompt and answer as they are."""

FUNCTIONS = """
def vowels(prompts, completions):
    assert len(prompts) == len(completions)
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]

def prompts_too(prompts, completions):
    return [float(len(prompt)) for prompt in prompts]

def one_short(prompts, completions):
    return [0.5] * (len(completions) - 1)

def not_a_number(prompts, completions):
    return [float("nan")] * len(completions)

def raises(prompts, completions):
    return [1 / 0 for _ in completions]

def leaves(prompts, completions):
    raise SystemExit(3)

def a_text(prompts, completions):
    return "good"

number = 3
"""


def write_functions(folder: Path) -> Path:
    """Write the functions into a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rewards.py"
    path.write_text(FUNCTIONS, encoding="utf-8")
    return path


def save_reward(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    accuracy: tuple[float, float, float] | None = None,
    labels: int = 1,
    form: dict[str, str] | None = None,
    **fields: Any,
) -> Path:
    """Write a run of a reward: `model/`, and `reward.json` with its accuracy and the ends of its interval.

    Its tokenizer pads with a token of its own.
    """
    own = copy.deepcopy(tokenizer)
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
        "num_labels": labels,
        "pad_token_id": None,
    }
    torch.manual_seed(3)
    model: Any = LlamaForSequenceClassification(LlamaConfig(**values | fields))
    give_padding_token(model, own)
    model.save_pretrained(folder / "model")
    own.save_pretrained(folder / "model")
    if accuracy is not None:
        share, low, high = accuracy
        report = {"accuracy": share, "interval": [low, high], "pairs": 200, "prompts": 100, "form": form or COMPLETION}
        for place in (folder, folder / "model"):
            (place / "reward.json").write_text(json.dumps(report), encoding="utf-8")
    return folder
