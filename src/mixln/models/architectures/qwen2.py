"""Qwen2 and Qwen2.5 under any placement: Llama with biases on query, key and value."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification, Qwen2Model

from mixln.models.decoder import PlacedForCausalLM, PlacedForSequenceClassification, PlacedModel
from mixln.models.placed import PlacedConfig
from mixln.models.registry import register_architecture


@strict
class MixLNQwen2Config(PlacedConfig, Qwen2Config):
    """`transformers.Qwen2Config` with a placement; see `PlacedConfig` for the fields it adds, and what it raises."""

    model_type = "mixln_qwen2"


class MixLNQwen2Model(PlacedModel, Qwen2Model):
    """The stack without the head: `transformers.Qwen2Model` with placed blocks."""

    config_class = MixLNQwen2Config


class MixLNQwen2ForCausalLM(PlacedForCausalLM, Qwen2ForCausalLM):
    """The language model: `transformers.Qwen2ForCausalLM` on `MixLNQwen2Model`."""

    model_class = MixLNQwen2Model


class MixLNQwen2ForSequenceClassification(PlacedForSequenceClassification, Qwen2ForSequenceClassification):
    """The classifier of texts: `transformers.Qwen2ForSequenceClassification` on `MixLNQwen2Model`."""

    model_class = MixLNQwen2Model


register_architecture("qwen2", MixLNQwen2ForCausalLM, heads=[MixLNQwen2ForSequenceClassification])
