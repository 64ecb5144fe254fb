"""Architectures under any placement. Importing this registers them with transformers' Auto classes."""

import importlib
import pkgutil
from typing import Any

from mixln.models.llama import MixLNLlamaConfig, MixLNLlamaForCausalLM, MixLNLlamaModel
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.registry import ARCHITECTURES, Architecture, register_architecture

# an architecture is one file of this folder, which registers itself
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "MixLNLlamaConfig",
    "MixLNLlamaForCausalLM",
    "MixLNLlamaModel",
    "PlacedConfig",
    "PlacedPreTrainedModel",
    "register_architecture",
]


def __getattr__(name: str) -> Any:
    """Return an architecture's class by its name: `MixLNQwen2Config`."""
    for found in ARCHITECTURES.values():
        for one in (found.config_class, found.model_class, found.causal_lm_class):
            if one.__name__ == name:
                return one
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
