"""The registry of architectures: whatever a file of this package registers is there for recipes, tests and users."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from mixln.models.decoder import PlacedForCausalLM, PlacedModel
from mixln.models.placed import PlacedConfig


@dataclass(frozen=True)
class Architecture:
    """An architecture under any placement.

    Attributes:
        name: in recipes and on the command line.
        config_class: of its configuration.
        model_class: of the stack without the head.
        causal_lm_class: of the language model.
    """

    name: str
    config_class: type[PlacedConfig]
    model_class: type[PlacedModel]
    causal_lm_class: type[PlacedForCausalLM]

    @property
    def stock_model_type(self) -> str:
        """What transformers calls the architecture (`llama`)."""
        return self.config_class.model_type.removeprefix("mixln_")


ARCHITECTURES: dict[str, Architecture] = {}


def register_architecture(
    name: str,
    config_class: type[PlacedConfig],
    model_class: type[PlacedModel],
    causal_lm_class: type[PlacedForCausalLM],
) -> None:
    """Register an architecture, with this library's registry and with transformers' Auto classes."""
    ARCHITECTURES[name] = Architecture(name, config_class, model_class, causal_lm_class)
    AutoConfig.register(config_class.model_type, config_class)
    AutoModel.register(config_class, model_class)
    AutoModelForCausalLM.register(config_class, causal_lm_class)
