"""Architectures under any placement. Importing this registers them with transformers' Auto classes."""

from collections.abc import Callable

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from mixln.models.llama import MixLNLlamaConfig, MixLNLlamaForCausalLM, MixLNLlamaModel
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel

ARCHITECTURES: dict[str, Callable[..., PlacedConfig]] = {"llama": MixLNLlamaConfig}
"""Name in recipes and on the command line, and the configuration class."""

AutoConfig.register(MixLNLlamaConfig.model_type, MixLNLlamaConfig)
AutoModel.register(MixLNLlamaConfig, MixLNLlamaModel)
AutoModelForCausalLM.register(MixLNLlamaConfig, MixLNLlamaForCausalLM)

__all__ = [
    "ARCHITECTURES",
    "MixLNLlamaConfig",
    "MixLNLlamaForCausalLM",
    "MixLNLlamaModel",
    "PlacedConfig",
    "PlacedPreTrainedModel",
]
