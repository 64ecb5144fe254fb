"""Architectures under any placement. Importing this registers them with transformers' Auto classes."""

from typing import Any

from mixln.errors import unsupported_transformers

try:
    from mixln.models.transformers_internals import check_internals
except ImportError as error:
    raise unsupported_transformers(str(error)) from error
from mixln.models.architectures.llama import MixLNLlamaConfig as MixLNLlamaConfig
from mixln.models.architectures.llama import MixLNLlamaForCausalLM as MixLNLlamaForCausalLM
from mixln.models.architectures.llama import MixLNLlamaModel as MixLNLlamaModel
from mixln.models.placed import PlacedConfig as PlacedConfig
from mixln.models.placed import PlacedPreTrainedModel as PlacedPreTrainedModel
from mixln.models.registry import ARCHITECTURES as ARCHITECTURES
from mixln.models.registry import Architecture as Architecture
from mixln.models.registry import language_models as language_models
from mixln.models.registry import register_architecture as register_architecture

check_internals()


def __getattr__(name: str) -> Any:
    """Return an architecture's class by its name: `MixLNQwen2Config`."""
    for found in ARCHITECTURES.values():
        for one in (found.config_class, *found.model_classes):
            if one.__name__ == name:
                return one
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
