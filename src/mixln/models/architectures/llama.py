"""Llama under any placement."""

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

from mixln.models.decoder import PlacedForCausalLM, PlacedForSequenceClassification, PlacedModel
from mixln.models.placed import PlacedConfig
from mixln.models.registry import register_architecture


@strict
class MixLNLlamaConfig(PlacedConfig, LlamaConfig):
    """`transformers.LlamaConfig` with a placement; see `PlacedConfig` for the fields it adds.

    Raises:
        PlacementError: an unknown placement.
        huggingface_hub.errors.StrictDataclassError: a field of the wrong type, heads that do not divide the hidden
            size, or a placement that does not fit the number of layers.
    """

    model_type = "mixln_llama"


class MixLNLlamaModel(PlacedModel, LlamaModel):
    """The stack without the head: `transformers.LlamaModel` with placed blocks."""

    config_class = MixLNLlamaConfig


class MixLNLlamaForCausalLM(PlacedForCausalLM, LlamaForCausalLM):
    """The language model: `transformers.LlamaForCausalLM` on `MixLNLlamaModel`."""

    model_class = MixLNLlamaModel


class MixLNLlamaForSequenceClassification(PlacedForSequenceClassification, LlamaForSequenceClassification):
    """The classifier of texts: `transformers.LlamaForSequenceClassification` on `MixLNLlamaModel`."""

    model_class = MixLNLlamaModel


register_architecture("llama", MixLNLlamaForCausalLM, heads=[MixLNLlamaForSequenceClassification])
