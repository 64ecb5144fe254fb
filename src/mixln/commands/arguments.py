"""How a function becomes a command: its signature gives the options, its docstring the help.

It is the function that Python calls too, as `mixln.train`: what Python alone can give, the command line leaves out.

| parameter | on the command line |
| --- | --- |
| before the `*` | a positional argument |
| behind it | an option, `--max-tokens` |
| `bool` | an option that needs no value |
| a sequence | one value or more: `2 4` |
| recipes, of one kind or of several, called `recipe` | `--recipe FILE`, `--tokens`, and an option for each field |
| a dataclass called `config` | an option for each field, `--max-tokens` |
| another dataclass | `--name.field` |
| `command_line: str` | none: gets what the user typed |
| `progress: bool` | none: is true |
| a result that is returned | `--json` |
| `**changes` | none: the command line has options for the fields |

Of a union, the dataclass counts, else `Path`, else what stands beside None. `Annotated[..., {...}]` adds what follows:

| key | |
| --- | --- |
| `names` | the values that there are; replaces `{names}` in the docstring |
| `metavar` | what stands for the value in the help |
| `const` | the value of an option without one |
| `skip` | fields of a dataclass or recipe that have no option |
| `as` | the type on the command line, where Python takes more |
| `default` | the value on the command line, where Python has another default |
| `repeatable` | a list is given by the option several times, with one value each |
| `python_only` | there is no option |
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from mixln.commands import find_command
from mixln.commands.options import JSON, PLUGIN, Interface, Option, choices, dataclasses_in, plain_kind
from mixln.errors import InputError
from mixln.signatures import parameter_types
from mixln.tasks.kinds import AnyRecipe, RecipeKind, kind_of
from mixln.tasks.recipes import field_types, flat_defaults, flat_fields, load_recipe, recipes_of

PYTHON_ONLY: Mapping[str, Any] = {"python_only": True}
"""Marks a parameter that has no option: `Annotated[PreTrainedTokenizerBase | None, PYTHON_ONLY]`."""

_FURTHER_NAMES = {"learning_rate": ("lr",)}
"""Other names that an option has."""

_METAVARS = {
    "architecture": "NAME",
    "baseline": "SCHEME",
    "cache": "FOLDER",
    "device": "DEVICE",
    "device_map": "auto",
    "figures": "FOLDER",
    "images": "IMAGES",
    "layers": "LAYERS",
    "metric": "NAME",
    "model": "MODEL",
    "models": "MODEL",
    "out": "FOLDER",
    "placement": "PLACEMENT",
    "prompt": "PROMPT",
    "recipe": "RECIPE",
    "schemes": "SCHEME",
    "source": "FOLDER",
    "stack": "NAME",
    "task_metric": "NAME",
    "task_path": "FOLDER",
    "tasks": "TASK",
    "targets": "NAME",
    "text": "TEXT",
    "text_field": "FIELD",
    "tokenizer": "MODEL",
    "trackers": "NAME",
    "validation_text": "TEXT",
}
"""What stands for the value of text or a path in the help, by the last part of a name."""


def find_interface(name: str) -> Interface:
    """Return a command of this library by its name."""
    return interface(name, find_command(name))


def interface(name: str, function: Callable[..., Any]) -> Interface:
    """Return the command that a function makes."""
    text, helps = _documentation(function)
    options: list[Option] = []
    kinds: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    recipe_default = None
    recipe_kinds: tuple[RecipeKind, ...] = ()
    for parameter, kind, extras in _parameters(function):
        if is_dataclass(kind):
            kinds[parameter.name] = kind
            if parameter.name == "recipe":
                recipe_default = load_recipe(parameter.default)
                recipe_kinds = tuple(kind_of(one) for one in dataclasses_in(parameter_types(function)["recipe"]))
                options += _recipe_options(recipe_default, recipe_kinds, extras.get("skip", ()))
            else:
                options += _field_options(parameter.name, kind, extras.get("skip", ()))
        elif parameter.name not in ("command_line", "progress"):
            options.append(_option(parameter, kind, helps.get(parameter.name, ""), extras))
            defaults |= {parameter.name: extras["default"]} if "default" in extras else {}
    if function.__annotations__.get("return") not in (None, "None", "str"):  # a result, which has more than one form
        options.append(JSON)
    examples = tuple(
        line.strip() for one in text.examples for line in (one.description or "").splitlines() if line.strip()
    )
    description = " ".join(f"{text.short_description} {text.long_description or ''}".split())
    return Interface(
        name, function, description, examples, (*options, PLUGIN), recipe_default, recipe_kinds, kinds, defaults
    )


def claim_output(out: Path, *, of_run: bool = True) -> None:
    """Create the output folder, and make sure before hours of work that it can be written.

    Args:
        out: the folder.
        of_run: a run is to be in it, whose reports and checkpoints would pass for those of a model that lies there.

    Raises:
        InputError: it cannot be written, or a model lies in it.
    """
    from mixln.storage import claim_folder

    if of_run and (out / "config.json").is_file():
        raise InputError(f"`out` {out} is the folder of a model (config.json). Choose another folder")

    try:
        claim_folder(out)
    except InputError as error:
        raise InputError(f"`out` {error}") from error


def _documentation(documented: Any) -> tuple[Any, dict[str, str]]:
    """Return a docstring, parsed, and what it says of each parameter; of a class, its bases' docstrings too."""
    from docstring_parser.google import parse

    texts = [parse(one.__doc__) for one in getattr(documented, "__mro__", (documented,))]
    parameters = [one for text in reversed(texts) for one in text.params]
    return texts[0], {one.arg_name: " ".join((one.description or "").split()) for one in parameters}


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any, dict[str, Any]]]:
    """Yield the parameters, each with its type on the command line, and what `Annotated` adds to it."""
    hints = parameter_types(function)
    for parameter in inspect.signature(function).parameters.values():
        hint, extras = hints[parameter.name], {}
        if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], dict):
            hint, extras = get_args(hint)
        if parameter.kind is not parameter.VAR_KEYWORD and not extras.get("python_only"):
            kind = plain_kind(hint)
            yield parameter, extras.get("as") or (kind if is_dataclass(kind) or kind is Path else hint), dict(extras)


def _option(parameter: inspect.Parameter, kind: Any, text: str, extras: Mapping[str, Any]) -> Option:
    positional = parameter.kind is not parameter.KEYWORD_ONLY
    required = parameter.default is parameter.empty
    names = tuple(extras.get("names", ()))
    return Option(
        parameter.name,
        "",
        (parameter.name,) if positional else _spellings(parameter.name),
        kind,
        text.replace("{names}", ", ".join(names)),
        default=extras.get("default", None if required else parameter.default),
        positional=positional,
        required=required,
        names=names,
        metavar=extras.get("metavar") or _metavar(parameter.name, kind, names),
        const=extras.get("const"),
        repeatable=bool(extras.get("repeatable")),
    )


def _field_options(parameter: str, kind: Any, skip: Collection[str]) -> Iterator[Option]:
    text, helps = _documentation(kind)
    hints = get_type_hints(kind, include_extras=True)
    prefix = "" if parameter == "config" else f"{parameter}."
    for one in fields(kind):
        if one.name not in skip:
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            yield Option(
                parameter,
                one.name,
                _spellings(f"{prefix}{one.name}"),
                hints[one.name],
                helps[one.name],
                group=_heading(text),
                default=default,
                metavar=_metavar(one.name, hints[one.name]),
            )


def _recipe_options(recipe: AnyRecipe, kinds: Sequence[RecipeKind], skip: Collection[str]) -> Iterator[Option]:
    """The options of recipes: what several kinds have is one option, whose default is that of the first."""
    shipped = ", ".join(recipes_of(kinds))
    yield Option("recipe", "", ("--recipe",), str, f"A shipped recipe ({shipped}) or a YAML file.", metavar="RECIPE")
    heading = _heading(_documentation(type(recipe))[0])
    for name, budget in {name: budget for kind in kinds for name, budget in kind.budgets.items()}.items():
        yield Option("recipe", name, (f"--{name}",), int, budget.help, group=heading, metavar="NUMBER")
    types_ = {name: hint for kind in reversed(kinds) for name, hint in field_types(kind.config).items()}
    leaves = [name.rpartition(".")[2] for name in types_]
    for number, kind in enumerate(kinds):
        values = flat_defaults(kind.config) | (flat_fields(recipe) if kind is kind_of(recipe) else {})
        before = {name for other in kinds[:number] for name in field_types(other.config)}
        for name, hint in field_types(kind.config).items():
            if name not in before and name not in skip:
                yield _recipe_option(kind, name, hint, values.get(name), leaves)


def _recipe_option(kind: RecipeKind, name: str, hint: Any, default: Any, leaves: Sequence[str]) -> Option:
    """The option of one field; it is also called by its last part where `leaves` have that once."""
    part, _, leaf = name.rpartition(".")
    text, helps = _documentation(get_type_hints(kind.config)[part] if part else kind.config)
    short = next((short for short, place in kind.short_names.items() if place == name), None)
    further = [leaf] if part and leaves.count(leaf) == 1 and leaf != "name" else []
    names = [*([short] if short else []), name, *further]
    return Option(
        "recipe",
        name,
        _spellings(*dict.fromkeys(names)),
        hint,
        helps[leaf],
        group=_heading(text),
        default=default,
        metavar=_metavar(short or leaf, hint),
    )


def _spellings(*names: str) -> tuple[str, ...]:
    every = [*names, *(other for name in names for other in _FURTHER_NAMES.get(name, ()))]
    return tuple(f"--{name.replace('_', '-')}" for name in every)


def _heading(text: Any) -> str:
    return re.split(r"[;:.]", text.short_description or "")[0]


def _metavar(name: str, kind: Any, names: Collection[str] = ()) -> str:
    """Return what stands for a value in the help: NUMBER, FOLDER, NAME."""
    kind = plain_kind(kind)
    if get_origin(kind) in (list, tuple, Sequence):
        return f"{_metavar(name, get_args(kind)[0], names)} ..."
    if kind is bool:
        return ""
    if kind in (int, float):
        return "NUMBER"
    leaf = name.rpartition(".")[2]
    return _METAVARS.get(leaf) or ("NAME" if names or choices(kind) else "FOLDER" if kind is Path else "NAME")
