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
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from mixln.lazy import after_import
from mixln.models.decoder import PlacedForCausalLM
from mixln.models.peft_targets import CONSTANTS, add_peft_targets
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.stack import PlacedStack, PlacedWithHead
from mixln.models.transformers_internals import register_with

_AUTO_CLASSES = {
    "ForCausalLM": AutoModelForCausalLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForImageClassification": AutoModelForImageClassification,
    "ForImageClassificationWithTeacher": AutoModelForImageClassification,
}
"""By the end of the name of a class: the Auto class that opens it."""


@dataclass(frozen=True)
class Architecture:
    """An architecture under any placement.

    Attributes:
        name: in recipes and on the command line.
        config_class: of its configuration.
        model_class: of the stack without the head.
        whole_class: of the model with the head that it is made for: a language model, or a classifier of images.
        head_classes: of models with another head.
    """

    name: str
    config_class: type[PlacedConfig]
    model_class: type[PlacedStack]
    whole_class: type[PlacedWithHead]
    head_classes: tuple[type[PlacedWithHead], ...] = ()

    @property
    def is_causal(self) -> bool:
        """Whether it is a language model, whose tokens see only those before them."""
        return issubclass(self.whole_class, PlacedForCausalLM)

    @property
    def stock_model_type(self) -> str:
        """What transformers calls the architecture (`llama`)."""
        return self.config_class.model_type.removeprefix("mixln_")

    @property
    def model_classes(self) -> tuple[type[PlacedPreTrainedModel], ...]:
        """The classes of its models, with every head and without."""
        return (self.model_class, self.whole_class, *self.head_classes)

    @property
    def auto_class(self) -> Any:
        """The Auto class of transformers that opens `whole_class`."""
        return auto_class_of(self.whole_class)


ARCHITECTURES: dict[str, Architecture] = {}


def auto_class_of(model_class: type[PreTrainedModel]) -> Any:
    """Return the Auto class of transformers that opens a model with a head."""
    name = model_class.__name__
    return next(found for ending, found in _AUTO_CLASSES.items() if name.endswith(ending))


def language_models() -> dict[str, Architecture]:
    """Return the architectures that predict the next token."""
    return {name: found for name, found in ARCHITECTURES.items() if found.is_causal}


def architecture_of(config: object) -> Architecture | None:
    """Return the architecture that a config of this library is of; None: it is of none that is registered."""
    return next((found for found in ARCHITECTURES.values() if found.config_class is type(config)), None)


def _tell_peft(constants: ModuleType) -> None:
    for one in ARCHITECTURES.values():
        add_peft_targets(
            constants, one.config_class.model_type, one.stock_model_type, one.model_class.parameter_roles.keys()
        )


after_import(CONSTANTS, _tell_peft)  # also of those that are registered until then


def register_architecture(
    name: str, whole_class: type[PlacedWithHead], heads: Sequence[type[PlacedWithHead]] = ()
) -> None:
    """Register an architecture, with this library's registry and with transformers' Auto classes.

    Its classes are attributes of `transformers` too: there libraries such as TRL look for the class that
    `architectures` in a config.json names. A class that they do not find they take for code of the folder, or they
    fail. PEFT adapts the same modules of it as of the stock architecture where it is not told which.

    Args:
        name: in recipes and on the command line.
        whole_class: of the language model, or of the classifier of images; it names the stack, and the stack names the
            config.
        heads: the classes of models with other heads, on the same stack.

    Raises:
        PlacementError: the architecture's norm is not the one that its config describes.
    """
    model_class = whole_class.model_class
    config_class = model_class.config_class
    assert config_class is not None
    assert issubclass(config_class, PlacedConfig)
    config_class().norm_factory().check()
    ARCHITECTURES[name] = Architecture(name, config_class, model_class, whole_class, tuple(heads))
    AutoConfig.register(config_class.model_type, config_class)
    AutoModel.register(config_class, model_class)
    by_auto_class: dict[Any, list[type[PreTrainedModel]]] = {}
    for one in (whole_class, *heads):
        by_auto_class.setdefault(auto_class_of(one), []).append(one)
    for auto_class, classes in by_auto_class.items():
        register_with(auto_class, config_class, classes)
    for module in _transformers_modules():
        for registered in (config_class, model_class, whole_class, *heads):
            setattr(module, registered.__name__, registered)
    if CONSTANTS in sys.modules:
        after_import(CONSTANTS, _tell_peft)


def _transformers_modules() -> list[ModuleType]:
    """Return every `transformers` that a module has imported.

    transformers runs its `__init__` a second time while it is imported, which makes another module of that name.
    Modules that imported it before keep the first one.
    """
    name = transformers.__name__
    imported = [vars(module).get(name) for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    found = {id(module): module for module in imported if isinstance(module, ModuleType) and module.__name__ == name}
    return [*found.values(), sys.modules[name]]
