"""OLMo 2 under any placement. As it is published: `reordered+qk_norm(per_head=false)`."""

from huggingface_hub.dataclasses import strict
from transformers import Olmo2Config, Olmo2ForCausalLM, Olmo2ForSequenceClassification, Olmo2Model

from mixln.models.decoder import PlacedForCausalLM, PlacedForSequenceClassification, PlacedModel
from mixln.models.placed import PlacedConfig
from mixln.models.registry import register_architecture


@strict
class MixLNOlmo2Config(PlacedConfig, Olmo2Config):
    """`transformers.Olmo2Config` with a placement; see `PlacedConfig` for the fields it adds, and what it raises."""

    model_type = "mixln_olmo2"
    stock_placement = "reordered+qk_norm(per_head=false)"

    placement: str = "reordered+qk_norm(per_head=false)"


class MixLNOlmo2Model(PlacedModel, Olmo2Model):
    """The stack without the head: `transformers.Olmo2Model` with placed blocks."""

    config_class = MixLNOlmo2Config


class MixLNOlmo2ForCausalLM(PlacedForCausalLM, Olmo2ForCausalLM):
    """The language model: `transformers.Olmo2ForCausalLM` on `MixLNOlmo2Model`."""

    model_class = MixLNOlmo2Model


class MixLNOlmo2ForSequenceClassification(PlacedForSequenceClassification, Olmo2ForSequenceClassification):
    """The classifier of texts: `transformers.Olmo2ForSequenceClassification` on `MixLNOlmo2Model`."""

    model_class = MixLNOlmo2Model


register_architecture("olmo2", MixLNOlmo2ForCausalLM, heads=[MixLNOlmo2ForSequenceClassification])
