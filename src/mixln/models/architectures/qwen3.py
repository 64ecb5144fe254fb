"""Qwen3 under any placement. As it is published: `pre+qk_norm`."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification, Qwen3Model

from mixln.models.decoder import PlacedForCausalLM, PlacedForSequenceClassification, PlacedModel
from mixln.models.placed import PlacedConfig
from mixln.models.registry import register_architecture


@strict
class MixLNQwen3Config(PlacedConfig, Qwen3Config):
    """`transformers.Qwen3Config` with a placement; see `PlacedConfig` for the fields it adds, and what it raises."""

    model_type = "mixln_qwen3"
    stock_placement = "pre+qk_norm"

    placement: str = "pre+qk_norm"


class MixLNQwen3Model(PlacedModel, Qwen3Model):
    """The stack without the head: `transformers.Qwen3Model` with placed blocks."""

    config_class = MixLNQwen3Config


class MixLNQwen3ForCausalLM(PlacedForCausalLM, Qwen3ForCausalLM):
    """The language model: `transformers.Qwen3ForCausalLM` on `MixLNQwen3Model`."""

    model_class = MixLNQwen3Model


class MixLNQwen3ForSequenceClassification(PlacedForSequenceClassification, Qwen3ForSequenceClassification):
    """The classifier of texts: `transformers.Qwen3ForSequenceClassification` on `MixLNQwen3Model`."""

    model_class = MixLNQwen3Model


register_architecture("qwen3", MixLNQwen3ForCausalLM, heads=[MixLNQwen3ForSequenceClassification])
