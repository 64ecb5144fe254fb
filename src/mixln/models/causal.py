"""Which models predict the next token."""

from __future__ import annotations

import torch

CAUSAL_CLASSES = ("ForCausalLM", "LMHeadModel")
"""How the names of classes end that predict the next token."""


def is_causal_language_model(model: torch.nn.Module) -> bool:
    """Whether a Hugging Face model predicts the next token: its class ends in `ForCausalLM` or `LMHeadModel`."""
    return type(model).__name__.endswith(CAUSAL_CLASSES)
