"""The shipped recipes: `pico`, `nano`, the five sizes of Mix-LN, table 9, other architectures of the papers, ViTs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from mixln.checked import Conversion
from mixln.errors import InputError
from mixln.placement.words import did_you_mean
from mixln.tasks.kinds import KINDS, LANGUAGE, AnyRecipe, RecipeKind, kind_of
from mixln.tasks.recipe import Recipe

_FOLDER = Path(__file__).parent

KIND = "kind"
"""The field of a recipe's file that says of which kind it is; without it, it is of language models."""

FIELDS_PAGE = "docs/reference/recipes.md lists the fields"


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes, smallest model of each family first."""
    order = ["pico", "nano", "71m", "130m", "250m", "1b", "7b", "qwen2.5-0.5b", "olmo-1b", "olmo-7b"]
    order += ["vit-nano-cifar", "vit-tiny-imagenet", "vit-small-imagenet"]
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
    recipe: str | Path | AnyRecipe | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    default: AnyRecipe | None = None,
    kinds: Collection[RecipeKind] = tuple(KINDS.values()),
) -> Any:
    """Return a recipe with some of its fields set to other values; it is of the kind that it says itself.

    Args:
        recipe: the name of a shipped recipe, a YAML file, or a recipe. None: `default`.
        settings: values by the names of fields (`steps`, `optimizer.learning_rate`), by short names, or by the names of
            budgets: the number of steps is then the smallest that makes so many `tokens`. Values may be text as people
            write them: `20k`, `1e-3`, `null`.
        default: taken if no recipe is named. None: `Recipe()`.
        kinds: that the recipe may be of.

    Raises:
        InputError: there is no such recipe, it is of another kind, it cannot be read, or it has an unknown field or a
            value that is wrong.
    """
    kind, values = _written(recipe, default, kinds)
    given = {kind.short_names.get(name, name): value for name, value in (settings or {}).items()}
    values |= _settings(kind, given, "")
    for name, budget in kind.budgets.items():
        if (wanted := values.pop(name, None)) is not None:
            values["steps"] = budget.steps(values, _convert(int, wanted, f"`{name}`"))
    if missing := field_types(kind.config).keys() - values.keys():
        name = min(missing)
        short = next((short for short, place in kind.short_names.items() if place == name), name)
        raise InputError(f"the recipe lacks {name}, which has no default: give `{short}`. {FIELDS_PAGE}")
    return _build(kind.config, values)


def kind_of_recipe(recipe: str | Path | AnyRecipe, kinds: Collection[RecipeKind] = tuple(KINDS.values())) -> RecipeKind:
    """Return the kind of a recipe that is given, shipped or in a file.

    Raises:
        InputError: there is no such recipe, it is of none of these kinds, or it cannot be read.
    """
    return _written(recipe, None, kinds)[0]


def recipes_of(kinds: Collection[RecipeKind]) -> list[str]:
    """Return the names of the shipped recipes of some kinds."""
    return [name for name in list_recipes() if kind_of_recipe(name) in kinds]


def _written(
    recipe: str | Path | AnyRecipe | None, default: AnyRecipe | None, kinds: Collection[RecipeKind]
) -> tuple[RecipeKind, dict[str, Any]]:
    """The kind of a recipe, and the values of its fields, also of those that a file leaves out."""
    if recipe is None or not isinstance(recipe, str | Path):
        found = recipe or default or Recipe()
        kind, values, named = kind_of(found), flat_fields(found), "the recipe"
    else:
        path, named = find_recipe(recipe), f"`recipe={recipe}`"
        written = _read_yaml(path)
        kind = _kind_named(written.pop(KIND, LANGUAGE.name), path)
        values = flat_defaults(kind.config) | _settings(kind, written, f"{path}: ")
    if kind not in kinds:
        others = ", ".join(recipes_of(kinds))
        raise InputError(f"{named} trains {kind.one}, and this is for {_about(kinds)} alone. Choose one of {others}")
    return kind, values


def _kind_named(name: Any, path: Path) -> RecipeKind:
    if name not in KINDS:
        raise InputError(f"{path}: {KIND} must be one of {', '.join(KINDS)}, not {name!r}")
    return KINDS[name]


def _about(kinds: Iterable[RecipeKind]) -> str:
    return " and ".join(kind.about for kind in kinds)


def flat_fields(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of all fields of nested configurations by their names, as `optimizer.learning_rate`."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        found |= flat_fields(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found


def flat_defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the defaults of all fields of a class of configurations and of those in it, by the names of `flat_fields`.

    Fields without a default are left out.
    """
    hints, found = get_type_hints(config), dict[str, Any]()
    for field in fields(config):
        name = f"{prefix}{field.name}"
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if is_dataclass(default):
            found |= flat_fields(default, f"{name}.")
        elif default is not MISSING:
            found[name] = default
        elif is_dataclass(hints[field.name]):
            found |= flat_defaults(hints[field.name], f"{name}.")
    return found


@cache
def field_types(config: Any = Recipe, prefix: str = "") -> dict[str, Any]:
    """Return the annotations of all fields of a configuration and of those in it, by the names of `flat_fields`."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(config, include_extras=True).items():
        if name in (field.name for field in fields(config)):
            found |= field_types(hint, f"{prefix}{name}.") if is_dataclass(hint) else {f"{prefix}{name}": hint}
    return found


def of_other_kind(kind: RecipeKind, name: str) -> str | None:
    """Return what to say of a setting that recipes of this kind do not have, and others do; None: none has it."""
    for other in KINDS.values():
        place = other.short_names.get(name, name)
        parts = get_type_hints(other.config)
        inner = {field.rpartition(".")[2] for field in field_types(other.config)}
        if other is kind or not (place in field_types(other.config) or name in {*other.budgets, *parts, *inner}):
            continue
        shown = next((short for short, own in other.short_names.items() if own == place), name.rpartition(".")[2])
        first, second = f"choose `recipe={other.example}`", "leave it out"
        if shown == other.source:
            second = f"give `{kind.source}` in its place"
        return f"`{shown}` is for {other.about}, and this recipe trains {kind.one}: {first}, or {second}"
    return None


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


def _settings(kind: RecipeKind, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the values with their types; `where` is what stands before a field in messages."""
    types = field_types(kind.config)
    budgets = () if where else kind.budgets
    for name in values:
        if name not in types and name not in budgets:
            if (problem := of_other_kind(kind, name)) is not None:
                raise InputError(f"{where}{problem}")
            raise InputError(f"{where}a recipe has no field {name!r}.{did_you_mean(name, types)} {FIELDS_PAGE}")
    return {
        name: value if name in budgets else _convert(types[name], value, f"{where}{name}")
        for name, value in values.items()
    }


def _convert(hint: Any, value: Any, path: str) -> Any:
    return Conversion(is_json=True, is_written=True).convert(hint, value, path)


def _build(config: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    hints = get_type_hints(config, include_extras=True)
    return config(
        **{
            field.name: _build(hints[field.name], values, f"{prefix}{field.name}.")
            if is_dataclass(hints[field.name])
            else values[f"{prefix}{field.name}"]
            for field in fields(config)
        }
    )
