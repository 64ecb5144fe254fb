"""How a function becomes a command: its signature gives the arguments, its docstring the help.

It is the function that Python calls too, as `mixln.train`: what Python alone can give, the command line leaves out.

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
| `progress: bool` | none: is true |
| `**changes` | none: the command line has options for the fields |

Of a union, the dataclass counts, else `Path`, else what stands beside None. `Annotated[..., {...}]` adds to the
keywords of `add_argument`. `as` there is the type on the command line, where Python takes more; `PYTHON_ONLY` is for
what no option can give; `names` replaces `{names}` in the docstring; `skip` has fields of a `config` without an option;
`sets: (field, function)` sets a field of the recipe to `function(value, arguments)` before the recipe is checked. Below
`Example:` the docstring shows a command.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse._actions import ActionConfigFile

from mixln.errors import InputError
from mixln.signatures import parameter_types

PYTHON_ONLY: dict[str, Any] = {"python_only": True}
"""Marks a parameter that has no option: `Annotated[PreTrainedTokenizerBase | None, PYTHON_ONLY]`."""

_RECIPE_SHORT = {
    "corpus": "data.corpus",
    "validation_corpus": "data.validation_corpus",
    "text_field": "data.text_field",
    "embedding_std": "model.embedding_std",
}
"""Options that stand for a field of the recipe, whatever its file says."""


def add_arguments(parser: ArgumentParser, command: Callable[..., Any]) -> None:
    """Give a parser the description, the example and the arguments of a command."""
    text, helps = _documentation(command)
    parser.description = " ".join(f"{text.short_description} {text.long_description or ''}".split())
    examples = "; ".join(line for one in text.examples for line in (one.description or "").splitlines())
    parser.epilog = f"example: {examples}"
    for parameter, kind, extras in _parameters(command):
        if is_dataclass(kind):
            _add_config(parser, parameter, kind, extras)
        elif parameter.name not in ("command_line", "progress"):
            _add_argument(parser, parameter, kind, helps[parameter.name], extras)
    if command.__annotations__.get("return") not in (None, "None", "str"):  # a result, which has more than one form
        parser.add_argument("--json", action="store_true", help="print the result as JSON")


def call(command: Callable[..., Any], parser: ArgumentParser, given: Namespace, command_line: str) -> Any:
    """Call a command with what its parser has read, and return what it returns.

    Raises:
        InputError: an option for a path is empty, or what the command or a config raises.
    """
    parameters = list(_parameters(command))
    for name, place in _RECIPE_SHORT.items():
        if place in given and _filled(given[name]) is not None:
            given[place] = given[name]
    for parameter, _, extras in parameters:
        if "sets" in extras and (value := given[parameter.name]) is not None:
            field_name, function = extras["sets"]
            given[field_name] = function(value, given)
    read = parser.instantiate(given)
    values: dict[str, Any] = {}
    for parameter, kind, extras in parameters:
        name = parameter.name
        if name == "command_line":
            values[name] = command_line
        elif name == "progress":
            values[name] = True
        elif name in ("recipe", "config"):
            skip = extras.get("skip", ())
            values[name] = kind(**{field.name: read[field.name] for field in fields(kind) if field.name not in skip})
        else:
            values[name] = Path(_filled(read[name])) if kind is Path and read[name] is not None else read[name]
    return command(**values)


def option_names(parser: ArgumentParser) -> dict[str, str]:
    """Return how the options of a parser are written, by the name of their parameter: `data.tokenizer`, `tokenizer`."""
    options = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
    return {name.rpartition(".")[2]: option for name, option in options.items()} | options


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
    """Return a docstring, parsed, and what it says of each parameter; of a class, its bases' docstrings too."""
    from docstring_parser.google import parse

    texts = [parse(one.__doc__) for one in getattr(documented, "__mro__", (documented,))]
    parameters = [one for text in reversed(texts) for one in text.params]
    helps = {one.arg_name: " ".join((one.description or "").split()).removesuffix(".") for one in parameters}
    return texts[0], helps


def _parameters(command: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any, dict[str, Any]]]:
    """Yield the parameters, each with its type on the command line, and what `Annotated` adds to it."""
    hints = parameter_types(command)
    for parameter in inspect.signature(command).parameters.values():
        hint, extras = hints[parameter.name], {}
        if get_origin(hint) is Annotated:
            hint, extras = get_args(hint)
        if parameter.kind is not parameter.VAR_KEYWORD and not extras.get("python_only"):
            yield parameter, extras.get("as") or _chosen(hint), dict(extras)


def _chosen(hint: Any) -> Any:
    """Return the member of a union that the command line reads."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    members = [one for one in get_args(hint) if one is not type(None)]
    wanted = next(filter(is_dataclass, members), Path if Path in members else None)
    if wanted is None:
        (wanted,) = members
    return wanted


def _add_argument(
    parser: ArgumentParser, parameter: inspect.Parameter, kind: Any, text: str, extras: dict[str, Any]
) -> None:
    keywords: dict[str, Any] = {"help": text.replace("{names}", ", ".join(extras.get("names", ())))}
    is_option = parameter.kind is parameter.KEYWORD_ONLY
    default = str(parameter.default) if isinstance(parameter.default, Path) else parameter.default
    if default is not parameter.empty:
        keywords["default"] = list(default) if isinstance(default, tuple) else default
    if kind is bool:
        keywords["action"] = "store_true"
    elif get_origin(kind) is not None:
        keywords |= {"nargs": "+", "type": get_args(kind)[0]}
    else:
        keywords["type"] = str if kind is Path else kind
        if not is_option and default is None:
            keywords["nargs"] = "?"
    name = f"--{parameter.name.replace('_', '-')}" if is_option else parameter.name
    keywords |= {key: value for key, value in extras.items() if key not in ("as", "names", "sets")}
    parser.add_argument(name, **keywords)


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


def _add_recipe(parser: ArgumentParser, kind: Any, default: Any) -> None:
    from mixln.tasks.recipes import list_recipes

    shipped = ", ".join(list_recipes())
    parser.add_argument("--recipe", action=_RecipeFile, help=f"shipped recipe ({shipped}) or YAML file; default: nano")
    for name, place in _RECIPE_SHORT.items():
        number = float if name == "embedding_std" else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=number, default=None, help=f"short for --{place}")
    parser.add_class_arguments(kind, default=default if isinstance(default, kind) else None)


class _RecipeFile(ActionConfigFile):
    """A config file, by its path or by the name of a shipped recipe."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        from mixln.tasks.recipes import find_recipe

        super().__call__(parser, namespace, str(find_recipe(values)), option_string)


def _filled(value: Any) -> Any:
    """Return a value, unless it is an empty text."""
    if value == "":
        raise InputError("an option for a corpus or folder is empty: give a path, or leave the option out")
    return value
