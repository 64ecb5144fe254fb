"""Tiny models with frozen norms, as a run leaves them: every weight, bias and scale has a value of its own."""

from __future__ import annotations

from typing import Any

import torch
from architecture_tools import tiny_architecture
from models_tools import token_ids
from torch import nn

from mixln.exchange.export import compare_logits
from mixln.models.decoder import PlacedForCausalLM
from mixln.tasks.norm_removal import FrozenNorms, install_frozen_norms
from mixln.tasks.norm_removal.fold import FoldReport

END_OF_TEXT = 5


def trained(name: str, text: str, **changes: Any) -> PlacedForCausalLM:
    """A model with random gains, and biases that are random of either sign."""
    model: Any = tiny_architecture(name, text, **changes)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif "activation_gate" in key:
                parameter *= 0.2  # of a larger one, what is left of the stream would be rounding
    return model


def with_norms(model: PlacedForCausalLM, *, end_of_text: int | None = END_OF_TEXT, seen: bool = True) -> FrozenNorms:
    """Install frozen norms; seen: let them see some tokens, so that every class has an average."""
    norms = install_frozen_norms(model, end_of_text)
    if seen:
        model.train()
        ids = token_ids(rows=4, length=16, seed=3)
        ids[:, 6] = END_OF_TEXT
        model(input_ids=ids, use_cache=False)
        norms.finish_step(torch.tensor(True), lambda totals: totals)
        model.eval()
    return norms


def freeze_all(norms: FrozenNorms, *, merge: bool = True) -> None:
    """Freeze everything, each path at another scale."""
    for number, (path, layer) in enumerate(norms.norms):
        norms.freeze(path, layer)
        norm = norms.norms[path, layer]
        norm.sigma[norm.paths.index(path)] *= 1.6 + 0.05 * (number % 9)
    if merge:
        norms.merge("first_position")
        norms.merge("end_of_text")


def frozen_model(name: str, text: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Return (model, norms), all of it frozen."""
    model: Any = nn.Module.to(trained(name, text, **changes), dtype)
    norms = with_norms(model)
    freeze_all(norms)
    return model, norms


def measure_fold(frozen: PlacedForCausalLM, folded: PlacedForCausalLM) -> FoldReport:
    """Compare the logits of a model with frozen norms and of what `fold_norms` made of it, on random tokens."""
    return FoldReport(*compare_logits(frozen.eval(), folded.eval()))
