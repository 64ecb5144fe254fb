"""The registry of architectures: what a file of `architectures/` registers is there for recipes, tests and users."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from mixln.models.decoder import PlacedForCausalLM, PlacedModel, PlacedWithHead
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel

_AUTO_CLASSES = {"ForSequenceClassification": AutoModelForSequenceClassification}
"""By the end of the name of a class: the Auto class that opens it."""


@dataclass(frozen=True)
class Architecture:
    """An architecture under any placement.

    Attributes:
        name: in recipes and on the command line.
        config_class: of its configuration.
        model_class: of the stack without the head.
        causal_lm_class: of the language model.
        head_classes: of models with another head.
    """

    name: str
    config_class: type[PlacedConfig]
    model_class: type[PlacedModel]
    causal_lm_class: type[PlacedForCausalLM]
    head_classes: tuple[type[PlacedWithHead], ...] = ()

    @property
    def stock_model_type(self) -> str:
        """What transformers calls the architecture (`llama`)."""
        return self.config_class.model_type.removeprefix("mixln_")

    @property
    def model_classes(self) -> tuple[type[PlacedPreTrainedModel], ...]:
        """The classes of its models, with every head and without."""
        return (self.model_class, self.causal_lm_class, *self.head_classes)


ARCHITECTURES: dict[str, Architecture] = {}


def register_architecture(
    name: str, causal_lm_class: type[PlacedForCausalLM], heads: Sequence[type[PlacedWithHead]] = ()
) -> None:
    """Register an architecture, with this library's registry and with transformers' Auto classes.

    Its classes are attributes of `transformers` too: there libraries such as TRL look for the class that
    `architectures` in a config.json names. A class that they do not find they take for code of the folder, or they
    fail.

    Args:
        name: in recipes and on the command line.
        causal_lm_class: of the language model; it names the stack, and the stack names the config.
        heads: the classes of models with other heads, on the same stack.

    Raises:
        PlacementError: the architecture's norm is not the one that its config describes.
    """
    model_class = causal_lm_class.model_class
    config_class = model_class.config_class
    assert config_class is not None
    assert issubclass(config_class, PlacedConfig)
    config_class().norm_factory().check()
    ARCHITECTURES[name] = Architecture(name, config_class, model_class, causal_lm_class, tuple(heads))
    AutoConfig.register(config_class.model_type, config_class)
    AutoModel.register(config_class, model_class)
    AutoModelForCausalLM.register(config_class, causal_lm_class)
    for head_class in heads:
        auto_class_of(head_class).register(config_class, head_class)
    for module in _transformers_modules():
        for registered in (config_class, model_class, causal_lm_class, *heads):
            setattr(module, registered.__name__, registered)


def auto_class_of(head_class: type[PlacedWithHead]) -> Any:
    """Return the Auto class of transformers that opens a model with another head, by the end of its name."""
    return next(found for ending, found in _AUTO_CLASSES.items() if head_class.__name__.endswith(ending))


def _transformers_modules() -> list[ModuleType]:
    """Return every `transformers` that a module has imported.

    transformers runs its `__init__` a second time while it is imported, which makes another module of that name.
    Modules that imported it before keep the first one.
    """
    name = transformers.__name__
    imported = [vars(module).get(name) for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    found = {id(module): module for module in imported if isinstance(module, ModuleType) and module.__name__ == name}
    return [*found.values(), sys.modules[name]]
