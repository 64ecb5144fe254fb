"""OLMo (the first) under any placement: its norms take the mean off and have nothing to learn."""

from huggingface_hub.dataclasses import strict
from transformers import OlmoConfig, OlmoForCausalLM, OlmoForSequenceClassification, OlmoModel

from mixln.models.decoder import PlacedForCausalLM, PlacedForSequenceClassification, PlacedModel
from mixln.models.placed import PlacedConfig
from mixln.models.registry import register_architecture
from mixln.models.transformers_internals import OlmoLayerNorm
from mixln.placement import ArchitectureNorm


@strict
class MixLNOlmoConfig(PlacedConfig, OlmoConfig):
    """`transformers.OlmoConfig` with a placement; see `PlacedConfig` for the fields it adds, and what it raises."""

    model_type = "mixln_olmo"
    norm_eps_name = None

    def norm_factory(self) -> ArchitectureNorm:
        """OLMo's LayerNorm without gain and bias; its eps is fixed."""
        return ArchitectureNorm(OlmoLayerNorm, self.hidden_size, eps=1e-5, centered=True, has_weight=False)


class MixLNOlmoModel(PlacedModel, OlmoModel):
    """The stack without the head: `transformers.OlmoModel` with placed blocks."""

    config_class = MixLNOlmoConfig


class MixLNOlmoForCausalLM(PlacedForCausalLM, OlmoForCausalLM):
    """The language model: `transformers.OlmoForCausalLM` on `MixLNOlmoModel`."""

    model_class = MixLNOlmoModel


class MixLNOlmoForSequenceClassification(PlacedForSequenceClassification, OlmoForSequenceClassification):
    """The classifier of texts: `transformers.OlmoForSequenceClassification` on `MixLNOlmoModel`."""

    model_class = MixLNOlmoModel


register_architecture("olmo", MixLNOlmoForCausalLM, heads=[MixLNOlmoForSequenceClassification])
