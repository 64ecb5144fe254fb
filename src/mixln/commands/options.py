"""The options of a command as data: how they are written, read and handed to its function."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mixln.checked import Conversion
from mixln.errors import InputError
from mixln.tasks.kinds import AnyRecipe, RecipeKind
from mixln.tasks.recipes import load_recipe


@dataclass(frozen=True, eq=False)
class Option:
    """An option or positional argument of a command.

    Attributes:
        parameter: of the command's function.
        field: of the recipe or dataclass that the parameter is; empty: the parameter itself.
        spellings: with dashes, the first one as the help shows it; a positional argument's name.
        kind: the type of its value, as `mixln.checked.Conversion` knows it.
        help: what it is, in sentences.
        group: the heading of the help under which it stands.
        default: its value when it is not given; None: there is none that can be told beforehand.
        positional: whether it has no name on the command line.
        required: whether it must be given.
        names: the values that there are, if the function checks them; empty: any.
        metavar: what stands for its value in the help.
        const: its value if it is given without one.
        repeatable: whether a list is given by the option several times, with one value each.
    """

    parameter: str
    field: str
    spellings: tuple[str, ...]
    kind: Any
    help: str
    group: str = ""
    default: Any = None
    positional: bool = False
    required: bool = False
    names: tuple[str, ...] = ()
    metavar: str = ""
    const: Any = None
    repeatable: bool = False

    @property
    def name(self) -> str:
        """How it is called in messages of the library: a parameter, or a field with its part."""
        return self.parameter if not self.field else self.field

    @property
    def is_flag(self) -> bool:
        """Whether it needs no value."""
        return plain_kind(self.kind) is bool

    @property
    def is_list(self) -> bool:
        """Whether it takes one value or more."""
        return get_origin(plain_kind(self.kind)) in (list, tuple, Sequence)

    def read(self, written: str | list[str]) -> Any:
        """Return the value that a user has written.

        Raises:
            InputError: it is of another type, or out of range.
        """
        shown = self.spellings[0]
        if plain_kind(self.kind) is Path and written == "":
            raise InputError(f"{shown} is empty: give a path, or leave the option out")
        return Conversion(is_json=True, is_written=True).convert(self.kind, written, shown)


PLUGIN = Option(
    "plugin",
    "",
    ("--plugin",),
    list[str],
    "A Python file that registers schemes, modifiers, architectures or measures of your own. It can be given again.",
    group="Options of every command",
    metavar="FILE",
    repeatable=True,
)


JSON = Option("json", "", ("--json",), bool, "Print the result as JSON.", group="Options")
"""Of a command that returns a result."""


@dataclass(frozen=True, eq=False)
class Interface:
    """A command as its user sees it.

    Attributes:
        name: of the command.
        function: what it calls.
        description: what it does.
        examples: commands, one a line.
        options: all there are.
        recipe_default: taken where no recipe is named; None: there is no recipe among the parameters.
        recipe_kinds: that a recipe may be of.
        parts: the dataclasses, the recipe among them, by the parameters that they are.
        defaults: values of parameters, where Python has other defaults.
    """

    name: str
    function: Callable[..., Any]
    description: str
    examples: tuple[str, ...]
    options: tuple[Option, ...]
    recipe_default: AnyRecipe | None
    recipe_kinds: tuple[RecipeKind, ...]
    parts: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def names(self) -> dict[str, str]:
        """Return how options are written, by the names that messages give them: `data.tokenizer`, `tokenizer`."""
        found = {name: f"--{name}" for name in self.parts}
        for option in self.options:
            found |= dict.fromkeys((option.name, option.name.rpartition(".")[2]), option.spellings[0])
            found |= {spelling.lstrip("-").replace("-", "_"): option.spellings[0] for spelling in option.spellings}
        return found

    def call(self, given: Mapping[Option, Any], command_line: str) -> Any:
        """Call the function with what its user has given, and return what it returns.

        Raises:
            InputError: a value is wrong, or what the function raises.
        """
        values = dict(self.defaults)
        fields_of: dict[str, dict[str, Any]] = {name: {} for name in self.parts}
        for option, written in given.items():
            value = option.read(written) if written is not option.const else written
            if option.parameter in fields_of:
                fields_of[option.parameter][option.field] = value
            else:
                values[option.parameter] = value
        for name, kind in self.parts.items():
            own = fields_of[name]
            if name == "recipe":
                values[name] = load_recipe(own.pop("", None), own, default=self.recipe_default, kinds=self.recipe_kinds)
            else:
                values[name] = kind(**own)
        always = {"command_line": command_line, "progress": True}
        parameters = inspect.signature(self.function).parameters
        return self.function(**values, **{name: value for name, value in always.items() if name in parameters})


def with_options(message: str, options: Mapping[str, str]) -> str:
    """Return a message with the parameters that it names, `max_tokens` or `by=removal`, written as options."""

    def write(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in options:
            return found[0]
        return options[name] if value is None else f"{options[name]} {value}"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", write, message)


def plain_kind(kind: Any) -> Any:
    """Return a type without what `Annotated` adds and without None."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, types.UnionType):
        return plain_kind(_chosen(kind))
    return kind


def choices(kind: Any) -> tuple[str, ...]:
    """Return the words that a type, or the items of one, can be; empty: it has no list of them."""
    kind = plain_kind(kind)
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    inner = get_args(kind)[:1] if get_origin(kind) in (list, tuple, Sequence) else ()
    return choices(inner[0]) if inner else ()


def dataclasses_in(hint: Any) -> list[Any]:
    """Return the dataclasses that a type stands for, without what `Annotated` adds."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else [hint]
    return [one for one in members if is_dataclass(one)]


def _chosen(hint: Any) -> Any:
    """Return the member of a union that the command line reads."""
    members = [one for one in get_args(hint) if one is not type(None)]
    kinds = {plain_kind(one): one for one in members}
    return next(filter(is_dataclass, members), kinds.get(Path, members[0]))
