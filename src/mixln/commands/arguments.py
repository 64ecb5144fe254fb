"""How a function becomes a command: its signature gives the arguments, its docstring the help.

| parameter | arguments |
| --- | --- |
| before the `*` | positional |
| behind it | an option, `--max-tokens` |
| `bool` | a flag |
| a sequence | one value or more |
| `Path` | text, which must not be empty |
| a dataclass called `recipe` | `--recipe FILE`, short options, and those of the dataclass |
| a dataclass called `config` | an option for each field, `--max-tokens` or, as the field is called, `--max_tokens` |
| another dataclass | `--name.field` |
| `command_line: str` | none: gets what the user typed |

`Annotated[..., {...}]` adds to the keywords of `add_argument`; `names` there replaces `{names}` in the docstring, and
`skip` has fields of a `config` without an option. Below `Example:` the docstring shows a command.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse._actions import ActionConfigFile

from mixln.errors import InputError

_RECIPE_SHORT = {
    "corpus": "data.corpus",
    "validation_corpus": "data.validation_corpus",
    "text_field": "data.text_field",
    "embedding_std": "model.embedding_std",
}
"""Options that stand for a field of the recipe, whatever its file says."""


def add_arguments(parser: ArgumentParser, command: Callable[..., None]) -> None:
    """Give a parser the description, the example and the arguments of a command."""
    text, helps = _documentation(command)
    parser.description = " ".join(f"{text.short_description} {text.long_description or ''}".split())
    examples = "; ".join(line for one in text.examples for line in (one.description or "").splitlines())
    parser.epilog = f"example: {examples}"
    for parameter, kind, extras in _parameters(command):
        if is_dataclass(kind):
            _add_config(parser, parameter, kind, extras)
        elif parameter.name != "command_line":
            _add_argument(parser, parameter, kind, helps[parameter.name], extras)


def call(command: Callable[..., None], parser: ArgumentParser, given: Namespace, command_line: str) -> None:
    """Call a command with what its parser has read.

    Raises:
        InputError: an option for a path is empty, or what the command or a config raises.
    """
    values: dict[str, Any] = {}
    for parameter, kind, extras in _parameters(command):
        name = parameter.name
        if name == "command_line":
            values[name] = command_line
        elif not is_dataclass(kind):
            values[name] = _path(given[name]) if kind is Path else given[name]
        elif name == "recipe":
            values[name] = _read_recipe(parser, given, kind)
        elif name == "config":
            values[name] = _read_fields(given, kind, **extras)
        else:
            values[name] = parser.instantiate(given)[name]
    command(**values)


def option_names(parser: ArgumentParser) -> dict[str, str]:
    """Return how the options of a parser are written, by the name of their parameter."""
    return {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}


def claim_output(out: Path) -> None:
    """Create the output folder, and make sure before hours of work that it can be written.

    Raises:
        InputError: it cannot.
    """
    from mixln.storage import claim_folder

    try:
        claim_folder(out)
    except InputError as error:
        raise InputError(f"`out` {error}") from error


def _documentation(documented: Any) -> tuple[Any, dict[str, str]]:
    from docstring_parser.google import parse

    text = parse(documented.__doc__)
    return text, {one.arg_name: " ".join((one.description or "").split()).removesuffix(".") for one in text.params}


def _parameters(command: Callable[..., None]) -> Iterator[tuple[inspect.Parameter, Any, dict[str, Any]]]:
    """Yield the parameters, each with its type without None and what `Annotated` adds to it."""
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        hint, extras = hints[parameter.name], {}
        if get_origin(hint) is Annotated:
            hint, extras = get_args(hint)
        if get_origin(hint) in (Union, types.UnionType):
            (hint,) = (one for one in get_args(hint) if one is not type(None))
        yield parameter, hint, dict(extras)


def _add_argument(
    parser: ArgumentParser, parameter: inspect.Parameter, kind: Any, text: str, extras: dict[str, Any]
) -> None:
    keywords: dict[str, Any] = {"help": text.replace("{names}", ", ".join(extras.pop("names", ())))}
    is_option, default = parameter.kind is parameter.KEYWORD_ONLY, parameter.default
    if default is not parameter.empty:
        keywords["default"] = _plain(default)
    if kind is bool:
        keywords["action"] = "store_true"
    elif get_origin(kind) is not None:
        keywords |= {"nargs": "+", "type": get_args(kind)[0]}
    else:
        keywords["type"] = str if kind is Path else kind
        if not is_option and default is None:
            keywords["nargs"] = "?"
    name = f"--{parameter.name.replace('_', '-')}" if is_option else parameter.name
    parser.add_argument(name, **keywords, **extras)


def _plain(default: Any) -> Any:
    if isinstance(default, Path):
        return str(default)
    return list(default) if isinstance(default, tuple) else default


def _add_config(parser: ArgumentParser, parameter: inspect.Parameter, kind: Any, extras: dict[str, Any]) -> None:
    from docstring_parser import DocstringStyle

    set_parsing_settings(docstring_parse_style=DocstringStyle.GOOGLE)  # trying all styles takes several times as long
    if parameter.name == "recipe":
        _add_recipe(parser, kind, parameter.default)
    elif parameter.name == "config":
        _add_fields(parser, kind, **extras)
    else:
        parser.add_class_arguments(kind, parameter.name)


def _add_fields(parser: ArgumentParser, kind: Any, skip: Sequence[str] = ()) -> None:
    text, helps = _documentation(kind)
    hints = get_type_hints(kind)
    group = parser.add_argument_group((text.short_description or "").rstrip("."))
    for field in fields(kind):
        if field.name not in skip:
            names = dict.fromkeys([f"--{field.name.replace('_', '-')}", f"--{field.name}"])
            group.add_argument(*names, type=hints[field.name], default=field.default, help=helps[field.name])


def _read_fields(given: Namespace, kind: Any, skip: Sequence[str] = ()) -> Any:
    return kind(**{field.name: given[field.name] for field in fields(kind) if field.name not in skip})


def _add_recipe(parser: ArgumentParser, kind: Any, default: Any) -> None:
    from mixln.tasks.recipes import list_recipes

    shipped = ", ".join(list_recipes())
    parser.add_argument("--recipe", action=_RecipeFile, help=f"shipped recipe ({shipped}) or YAML file; default: nano")
    for name, place in _RECIPE_SHORT.items():
        number = float if name == "embedding_std" else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=number, default=None, help=f"short for --{place}")
    parser.add_class_arguments(kind, as_group=True)
    if isinstance(default, kind):
        own = kind()
        changed = {one.name for one in fields(kind) if getattr(default, one.name) != getattr(own, one.name)}
        parser.set_defaults(**{name: getattr(default, name) for name in changed})


class _RecipeFile(ActionConfigFile):
    """A config file, by its path or by the name of a shipped recipe."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        from mixln.tasks.recipes import find_recipe

        super().__call__(parser, namespace, str(find_recipe(values)), option_string)


def _read_recipe(parser: ArgumentParser, given: Namespace, kind: Any) -> Any:
    for name, place in _RECIPE_SHORT.items():
        if _filled(given[name]) is not None:
            given[place] = given[name]
    # before the recipe is checked, whose own steps nobody has asked for
    if (tokens := given.get("tokens")) is not None:
        if tokens < 1:
            raise InputError(f"`tokens` must be at least 1, not {tokens}")
        given["steps"] = math.ceil(tokens / max(1, given["batch_size"] * given["data.sequence_length"]))
    values = parser.instantiate(given)
    return kind(**{field.name: values[field.name] for field in fields(kind)})


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(_filled(value))


def _filled(value: Any) -> Any:
    """Return a value, unless it is an empty text."""
    if value == "":
        raise InputError("an option for a corpus or folder is empty: give a path, or leave the option out")
    return value
