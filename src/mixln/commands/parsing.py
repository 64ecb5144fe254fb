"""From the words of a command line to the options that they give.

argparse tells options, their values and positional arguments apart. Before that every option is written as it is now:
with dashes, and by its first name.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from mixln.commands.options import Interface, Option
from mixln.commands.spelling import contradiction, new_name
from mixln.errors import InputError
from mixln.placement.words import did_you_mean
from mixln.written import is_null, written_bool

HELP = ("--help", "-h")
HELP_ALL = "--help-all"


class OldNameWarning(UserWarning):
    """An option is written as it was before."""


class Parser(argparse.ArgumentParser):
    """One that raises InputError where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        raise InputError(f"{message}. `{self.prog} --help` shows the options")


def wants_help(words: Sequence[str]) -> bool | None:
    """Return whether all options are to be shown; None: no help is asked for."""
    options = words[: words.index("--")] if "--" in words else words
    if HELP_ALL in options:
        return True
    return False if any(word in options for word in HELP) else None


def parse(command: Interface, words: Sequence[str]) -> dict[Option, Any]:
    """Return the options that are given, and what is written of each.

    Raises:
        InputError: there is no such option, one lacks its value, an argument is missing, or two contradict each other.
    """
    words = _as_written_now(command, words)
    parser = build_parser(command)
    found, rest = parser.parse_known_args(words)
    if rest:
        raise InputError(
            f"`mixln {command.name}` does not take {' '.join(rest)!r}. `mixln {command.name} --help` shows what "
            "it takes"
        )
    given = {command.options[int(index)]: written for index, written in vars(found).items()}
    said = [option.spellings[0] for option, written in given.items() if not _says_nothing(option, written)]
    if (problem := contradiction(command.name, said)) is not None:
        raise InputError(problem)
    return given


def _says_nothing(option: Option, written: Any) -> bool:
    """Whether an option is given without effect: `--tokenizer null`, `--any false`."""
    return isinstance(written, str) and (is_null(written) or (option.is_flag and written_bool(written) is False))


def build_parser(command: Interface) -> Parser:
    """Return argparse's parser for a command, whose namespace has the numbers of the options that are given."""
    parser = Parser(
        prog=f"mixln {command.name}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for index, option in enumerate(command.options):
        keywords: dict[str, Any] = {"metavar": option.metavar or None}
        optional = option.positional and not option.required
        if option.is_list:
            keywords |= {"action": "append"} if option.repeatable else {"nargs": "*" if optional else "+"}
        elif option.const is not None or optional:
            keywords |= {"nargs": "?", "const": option.const}
        if option.positional:
            action = parser.add_argument(str(index), **keywords)
            action.metavar = option.spellings[0].upper()
        else:
            parser.add_argument(option.spellings[0], dest=str(index), required=option.required, **keywords)
    return parser


def _as_written_now(command: Interface, words: Sequence[str]) -> list[str]:
    """Return the words with every option by its first name, and a value for each that stands for true without one."""
    known = {spelling: option for option in command.options if not option.positional for spelling in option.spellings}
    last = words.index("--") if "--" in words else len(words)
    seen: dict[Option, str] = {}
    written: list[str] = []
    for index, word in enumerate(words[:last]):
        if not word.startswith("--"):
            written.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name not in known and (new := new_name(command.name, name, known)) is not None:
            message = f"{name} is now written {new}. The old name will not work in the next version"
            warnings.warn(message, OldNameWarning, stacklevel=2)
            name = new
        if name not in known:
            meant = did_you_mean(name, known)
            raise InputError(
                f"`mixln {command.name}` has no option {name}.{meant} `mixln {command.name} --help-all` shows all"
            )
        option = known[name]
        if seen.setdefault(option, name) != name:
            raise InputError(f"{seen[option]} and {name} are the same option. Give it once")
        if option.is_flag and not equals and (index + 1 >= last or written_bool(words[index + 1]) is None):
            equals, value = "=", "true"
        written.append(f"{option.spellings[0]}{equals}{value}")
    return [*written, *words[last:]]
