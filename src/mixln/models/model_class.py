"""The class that a checkpoint is of, by what its config says and transformers knows."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from mixln.errors import InputError


def model_class_of(config: PreTrainedConfig, name_or_path: str) -> type[PreTrainedModel]:
    """Return the class that `config.architectures` names: of transformers, or registered with its Auto classes.

    Raises:
        InputError: none is named, or several, or it is not there (code that a checkpoint brings along is never run).
    """
    names = named_classes(config, name_or_path)
    if len(names) != 1:
        named = f"names {', '.join(names)}" if names else "names no class"
        raise InputError(
            f'{name_or_path}: config.json {named} under "architectures", so it is not clear which class the '
            "weights belong to. "
            "Write the one class there that the weights were saved from"
        )
    for candidate in _candidates(config, names[0]):
        if isinstance(candidate, type) and issubclass(candidate, PreTrainedModel):
            return candidate
    own_code = " It brings its own code, which is never run." if getattr(config, "auto_map", None) else ""
    raise InputError(
        f"{name_or_path} is of the class {names[0]}, which transformers {transformers.__version__} does not have."
        f"{own_code} Give a model of a class that transformers has"
    )


def named_classes(config: PreTrainedConfig, name_or_path: str) -> list[str]:
    """Return what `config.architectures` names; it may name nothing.

    Raises:
        InputError: it is no list of names.
    """
    names: Any = config.architectures or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f'{name_or_path}: "architectures" in config.json is {names!r}. Write a list there with the name of the one '
            "class that the weights were saved from"
        )
    return names


def require_fitting_classes(config: PreTrainedConfig, name_or_path: str) -> None:
    """Make sure that the classes that a config names are of its model type.

    Raises:
        InputError: transformers' class of such a name is of another type, or the names are no names.
    """
    for name in named_classes(config, name_or_path):
        found = getattr(transformers, name, None)
        if not (isinstance(found, type) and issubclass(found, PreTrainedModel)) or found.config_class is None:
            continue
        if not isinstance(config, found.config_class):
            raise InputError(
                f'{name_or_path}: "model_type" in config.json is {config.model_type}, and the class in "architectures" '
                f"({name}) is of the type {found.config_class.model_type}. Correct the one that is wrong"
            )


def in_mapping(model_class: type, mapping: Any) -> bool:
    """Whether one of transformers' `MODEL_..._MAPPING`s, or who registered with it, opens this very class."""
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        return False
    config_class = getattr(model_class, "config_class", None)
    return config_class is not None and model_class in classes_for(config_class, mapping)


def _candidates(config: PreTrainedConfig, name: str) -> Iterator[Any]:
    for mapping_name, mapping in vars(modeling_auto).items():
        if mapping_name.endswith("_MAPPING"):
            yield from (found for found in classes_for(type(config), mapping) if found.__name__ == name)
    yield getattr(transformers, name, None)
    # a class that transformers has and does not list
    module = type(config).__module__
    if module.startswith("transformers."):
        try:
            yield getattr(importlib.import_module(module.replace(".configuration_", ".modeling_")), name, None)
        except ImportError:
            return


def classes_for(config_class: type, mapping: Any) -> tuple[type, ...]:
    """The classes that one of transformers' mappings, or who registered with it, has for a config's class."""
    try:
        found = mapping.get(config_class, ())
    except (ImportError, AttributeError, ValueError):  # of a package that is not installed
        return ()
    return found if isinstance(found, tuple) else (found,)
