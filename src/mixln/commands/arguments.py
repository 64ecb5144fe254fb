"""What several commands share: their parsers, the recipe among their options, their output folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from mixln.errors import InputError
from mixln.files import claim_folder
from mixln.training import Recipe
from mixln.training.recipes import list_recipes

SUBCOMMAND = "subcommand"


@dataclass(frozen=True)
class Command:
    """One subcommand of `mixln`.

    Attributes:
        name: what the user types.
        summary: one line for `mixln --help`.
        parser: builds the parser of its arguments.
        run: called with the parsed arguments and the whole command line; returns the exit status.
    """

    name: str
    summary: str
    parser: Callable[[], ArgumentParser]
    run: Callable[[Namespace, str], int]


@dataclass(frozen=True)
class CommandGroup:
    """Subcommands of `mixln` under one name, as `mixln data prepare`.

    Attributes:
        name: what the user types first.
        summary: one line for `mixln --help`.
        commands: what can follow.
    """

    name: str
    summary: str
    commands: Sequence[Command]


def add_commands(parser: ArgumentParser, commands: Sequence[Command | CommandGroup]) -> None:
    """Let a parser take one of these commands; `run_command` runs it."""
    subcommands = parser.add_subcommands(required=True, dest=SUBCOMMAND)
    for command in commands:
        if isinstance(command, Command):
            subcommands.add_subcommand(command.name, command.parser(), help=command.summary)
        else:
            examples = " ".join(str(own.parser().epilog) for own in command.commands)
            group = ArgumentParser(
                description=f"{command.summary[0].upper()}{command.summary[1:]}.",
                epilog=examples,
                exit_on_error=False,
            )
            # jsonargparse takes subcommands only in a parser that is in its parent already
            subcommands.add_subcommand(command.name, group, help=command.summary)
            add_commands(group, command.commands)


def run_command(commands: Sequence[Command | CommandGroup], given: Namespace, command_line: str) -> int:
    """Run the command that was given, and return the exit status."""
    command = next(command for command in commands if command.name == given[SUBCOMMAND])
    given = given[command.name]
    if isinstance(command, Command):
        return command.run(given, command_line)
    return run_command(command.commands, given, command_line)


def command_parser(description: str, example: str) -> ArgumentParser:
    """Return an empty parser that shows an example below its help."""
    return ArgumentParser(
        description=description,
        epilog=f"example: {example}",
        exit_on_error=False,
    )


def add_recipe(parser: ArgumentParser) -> None:
    """Add the options that make up a recipe."""
    shipped = ", ".join(list_recipes())
    parser.add_argument("--recipe", action="config", help=f"shipped recipe ({shipped}) or YAML file; default: nano")
    parser.add_argument("--corpus", type=str, default=None, help="short for --data.corpus")
    parser.add_argument("--validation-corpus", type=str, default=None, help="short for --data.validation_corpus")
    parser.add_argument("--embedding-std", type=float, default=None, help="short for --model.embedding_std")
    parser.add_class_arguments(Recipe, as_group=True)
    parser.add_argument("--cache", type=str, default=None, help="folder for tokenised data; default: ~/.cache/mixln")


def add_fields(parser: ArgumentParser, kind: Any, skip: Collection[str] = ()) -> None:
    """Add an option for each field of a flat dataclass, `--max-tokens` or, as the field is called, `--max_tokens`.

    Args:
        parser: to add them to.
        kind: the dataclass; its docstring says in `Attributes` what its fields mean.
        skip: names of fields without an option.
    """
    types, documented = get_type_hints(kind), docstring_parser.parse(kind.__doc__)
    meanings = {attribute.arg_name: attribute.description for attribute in documented.params}
    group = parser.add_argument_group((documented.short_description or "").rstrip("."))
    for field in fields(kind):
        if field.name not in skip:
            names = dict.fromkeys([f"--{field.name.replace('_', '-')}", f"--{field.name}"])
            group.add_argument(*names, type=types[field.name], default=field.default, help=meanings[field.name])


def recipe_from(given: Namespace, parser: ArgumentParser) -> Recipe:
    """Return the recipe that `add_recipe`'s options give."""
    values = parser.instantiate(given)
    recipe = Recipe(**{field.name: values[field.name] for field in fields(Recipe)})
    data = {"corpus": given.corpus, "validation_corpus": given.validation_corpus}
    data = {name: value for name, value in data.items() if value is not None}
    if "" in data.values() or given.cache == "" or given.out == "":
        raise InputError("an option for a corpus or folder is empty: give a path, or leave the option out")
    model = {} if given.embedding_std is None else {"embedding_std": given.embedding_std}
    return replace(recipe, data=replace(recipe.data, **data), model=replace(recipe.model, **model))


def claim_output(folder: Path) -> None:
    """Create an output folder, and make sure now, before hours of work, that it can be written.

    Raises:
        InputError: it cannot.
    """
    try:
        claim_folder(folder)
    except InputError as error:
        raise InputError(f"--out {error}") from error


def cache_folder(given: Namespace) -> Path | None:
    """Return the folder for tokenised data that was asked for."""
    return None if given.cache is None else Path(given.cache)
