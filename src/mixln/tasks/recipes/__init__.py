"""The shipped recipes: `pico`, `nano`, the five sizes of Mix-LN, table 9, and the other architectures of the papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from mixln.checked import Conversion
from mixln.errors import InputError
from mixln.placement.words import did_you_mean
from mixln.tasks.recipe import Recipe, steps_of_tokens

_FOLDER = Path(__file__).parent

SHORT_NAMES = {
    "text": "data.corpus",
    "validation_text": "data.validation_corpus",
    "text_field": "data.text_field",
    "tokenizer": "data.tokenizer",
    "sequence_length": "data.sequence_length",
    "placement": "model.placement",
    "architecture": "model.architecture",
    "embedding_std": "model.embedding_std",
    "learning_rate": "optimizer.learning_rate",
}
"""Names that stand for a field of a recipe, on the command line and in Python."""

FIELDS_PAGE = "docs/reference/recipes.md lists the fields"

TOKENS = "tokens"
"""The setting that gives the number of steps by the token slots to train on."""


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes, smallest model of each family first."""
    order = ["pico", "nano", "71m", "130m", "250m", "1b", "7b", "qwen2.5-0.5b", "olmo-1b", "olmo-7b"]
    found = {path.stem for path in _FOLDER.glob("*.yaml")}
    return [name for name in order if name in found] + sorted(found - set(order))


def find_recipe(name_or_path: str | Path) -> Path:
    """Return the file of a shipped recipe, or the path itself if it is a file.

    Raises:
        InputError: it is neither.
    """
    if str(name_or_path) in list_recipes():
        return _FOLDER / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if not path.is_file():
        shipped = list_recipes()
        meant = did_you_mean(str(name_or_path), shipped)
        raise InputError(
            f"`recipe={name_or_path}`: no such file, and no shipped recipe.{meant} Shipped: {', '.join(shipped)}"
        )
    return path


def load_recipe(
    recipe: str | Path | Recipe | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    default: Recipe | None = None,
) -> Recipe:
    """Return a recipe with some of its fields set to other values.

    Args:
        recipe: the name of a shipped recipe, a YAML file, or a recipe. None: `default`.
        settings: values by the names of fields (`steps`, `optimizer.learning_rate`), by short names (`SHORT_NAMES`), or
            `tokens`: the number of steps is then the smallest that makes so many token slots. Values may be text as
            people write them: `20k`, `1e-3`, `null`.
        default: taken if no recipe is named. None: `Recipe()`, which also has the fields that a file leaves out.

    Raises:
        InputError: there is no such recipe, it cannot be read, or it has an unknown field or a value that is wrong.
    """
    base = (default or Recipe()) if recipe is None else Recipe()
    if isinstance(recipe, Recipe):
        base, recipe = recipe, None
    values = dict(flat_fields(base))
    if recipe is not None:
        path = find_recipe(recipe)
        values |= _settings(_read_yaml(path), f"{path}: ")
    given = _settings({SHORT_NAMES.get(name, name): value for name, value in (settings or {}).items()}, "")
    values |= given
    if (tokens := values.pop(TOKENS, None)) is not None:
        count = _convert(int, tokens, f"`{TOKENS}`")
        values["steps"] = steps_of_tokens(count, values["batch_size"], values["data.sequence_length"], TOKENS)
    return _build(Recipe, values)


def flat_fields(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of all fields of nested configurations by their names, as `optimizer.learning_rate`."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        found |= flat_fields(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found


@cache
def field_types(kind: Any = Recipe, prefix: str = "") -> dict[str, Any]:
    """Return the annotations of all fields of a configuration and of those in it, by the names of `flat_fields`."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if name in (field.name for field in fields(kind)):
            found |= field_types(hint, f"{prefix}{name}.") if is_dataclass(hint) else {f"{prefix}{name}": hint}
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"`recipe={path}` cannot be read as YAML: {reason}. Give a file like those shipped") from error
    if not isinstance(found, dict):
        raise InputError(f"`recipe={path}` holds no fields with values. Give a YAML file such as: steps: 500")
    return _flat(found)


def _flat(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _settings(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the values with their types; `where` is what stands before a field in messages."""
    types = field_types()
    for name in values:
        if name not in types and (where or name != TOKENS):
            meant = did_you_mean(name, types)
            raise InputError(f"{where}a recipe has no field {name!r}.{meant} {FIELDS_PAGE}")
    return {
        name: value if name == TOKENS else _convert(types[name], value, f"{where}{name}")
        for name, value in values.items()
    }


def _convert(hint: Any, value: Any, path: str) -> Any:
    return Conversion(is_json=True, is_written=True).convert(hint, value, path)


def _build(kind: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    hints = get_type_hints(kind, include_extras=True)
    return kind(
        **{
            field.name: _build(hints[field.name], values, f"{prefix}{field.name}.")
            if is_dataclass(hints[field.name])
            else values[f"{prefix}{field.name}"]
            for field in fields(kind)
        }
    )
