"""PEFT's default targets of adapters, by model type: this library's types have those of their stock architecture."""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType

CONSTANTS = "peft.utils.constants"
"""The module of PEFT with a mapping for each kind of adapter, from a model type to names of modules."""


def add_peft_targets(constants: ModuleType, model_type: str, stock_type: str, matrices: Collection[str]) -> None:
    """Let PEFT choose for a model type, where it is given no `target_modules`, what it chooses for the stock type.

    Defaults that name norms are left out: which norms there are is up to the placement, so that PEFT would leave some
    of them out without a word. It asks for names then.

    Args:
        constants: PEFT's module of that name.
        model_type: of this library.
        stock_type: what transformers calls the architecture.
        matrices: patterns of the names of its matrices.
    """
    modules = [f".{pattern.removesuffix('.weight')}" for pattern in matrices]
    for name, mapping in vars(constants).items():
        targets = mapping.get(stock_type) if name.startswith("TRANSFORMERS_MODELS_TO_") else None
        if isinstance(targets, list) and all(any(one.endswith(f".{each}") for one in modules) for each in targets):
            mapping.setdefault(model_type, list(targets))
