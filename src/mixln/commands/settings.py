"""Configurations and recipes as plain keyword arguments: `mixln.train(steps=1000, placement="mix", hidden_size=256)`.

A keyword is the name of a field, wherever it stands in a configuration: `hidden_size` is `model.hidden_size`. A whole
part can be given too: `optimizer=OptimizerConfig(name="adamw")`. `mixln.commands.fields` says so to type checkers.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from mixln.checked import Checked
from mixln.errors import InputError
from mixln.placement.words import did_you_mean
from mixln.tasks.kinds import KINDS, AnyRecipe, RecipeKind
from mixln.tasks.recipes import FIELDS_PAGE, flat_fields, kind_of_recipe, load_recipe, of_other_kind

Config = TypeVar("Config", bound=Checked)


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a configuration with other values of some fields, also of fields of its parts.

    Args:
        config: what is changed; it stays as it is.
        changes: new values, by the names of the fields.

    Raises:
        InputError: there is no such field, or a value is of another type or out of range.
    """
    places = field_places(type(config))
    if unknown := [name for name in changes if name not in places]:
        nearest = did_you_mean(unknown[0], places)
        raise InputError(f"there is no field `{unknown[0]}`.{nearest} Valid: {', '.join(sorted(places))}")
    whole = {name: value for name, value in changes.items() if not places[name]}
    for part in dict.fromkeys(places[name] for name in changes if places[name]):
        own = {name: value for name, value in changes.items() if places[name] == part}
        whole[part] = replace(whole.get(part, getattr(config, part)), **own)
    return replace(config, **whole)


@cache
def field_places(kind: type[Checked]) -> dict[str, str]:
    """Return the names that `changed` takes, and the part that each is a field of; empty: of the whole.

    A name that several parts have stands for none of them.
    """
    hints = get_type_hints(kind)
    own = [field.name for field in fields(kind)]
    places: dict[str, str] = {}
    for part in own:
        inner = [field.name for field in fields(hints[part])] if is_dataclass(hints[part]) else []
        places |= {name: part for name in inner if name not in ("name", *own)}
    return places | dict.fromkeys(own, "")


def settled_recipe(
    recipe: AnyRecipe | str | Path, changes: Mapping[str, Any], kinds: Collection[RecipeKind] = tuple(KINDS.values())
) -> AnyRecipe:
    """Return the recipe that a function was asked for.

    Args:
        recipe: a recipe, the name of a shipped one, or a YAML file.
        changes: fields that differ, by their names, by those of their parts, or by short names.
        kinds: that the recipe may be of.

    Raises:
        InputError: there is no such recipe, it is of another kind, or a field is not one, or has a value that is none.
    """
    kind = kind_of_recipe(recipe, kinds)
    places = field_places(kind.config)
    known = {*places, *kind.short_names, *kind.budgets}
    settings: dict[str, Any] = {}
    # parts first: a field that is named itself counts more
    for name, value in sorted(changes.items(), key=lambda change: not isinstance(change[1], Checked | Mapping)):
        if name not in known:
            if (problem := of_other_kind(kind, name)) is not None:
                raise InputError(problem)
            raise InputError(f"a recipe has no field {name!r}.{did_you_mean(name, known)} {FIELDS_PAGE}")
        if isinstance(value, Checked):
            settings |= flat_fields(value, f"{name}.")
        elif isinstance(value, Mapping):
            settings |= {f"{name}.{field}": own for field, own in value.items()}
        elif name in kind.short_names or not places.get(name):
            settings[name] = value
        else:
            settings[f"{places[name]}.{name}"] = value
    return load_recipe(recipe, {name: fspath(value) for name, value in settings.items()}, kinds=kinds)


def fspath(value: Any) -> Any:
    """Return a path as text, and anything else as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value
