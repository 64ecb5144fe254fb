"""Scripts that complete commands and options in a shell, made by shtab from the same options as the help."""

from __future__ import annotations

import argparse
import importlib

from mixln.commands import COMMANDS, is_group
from mixln.commands.arguments import find_interface
from mixln.commands.options import Option, choices
from mixln.errors import InputError
from mixln.placement.words import did_you_mean

SHELLS = ("bash", "zsh", "fish")

_FILES = {"FILE": "FILE", "RECIPE": "FILE", "TEXT": "FILE", "MODEL": "DIRECTORY", "FOLDER": "DIRECTORY"}
"""What is completed by names of files or folders, by what stands for the value in the help."""


def completion(shell: str) -> str:
    """Return the script for a shell.

    Raises:
        InputError: it is another shell, or shtab is not installed.
    """
    if shell not in SHELLS:
        raise InputError(
            f"--completion {shell}: there is no script for that shell.{did_you_mean(shell, SHELLS)} Valid: "
            f"{', '.join(SHELLS)}"
        )
    try:
        shtab = importlib.import_module("shtab")
    except ImportError as error:
        raise InputError("--completion needs shtab: pip install 'mixln[completion]'") from error
    return f"{shtab.complete(_parser_of_all(), shell)}\n"


def _parser_of_all() -> argparse.ArgumentParser:
    """Return argparse's parser of the whole command line, with a subparser for each command."""
    top = argparse.ArgumentParser(prog="mixln")
    groups = {"": top.add_subparsers()}
    for name, summary in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        parser = groups[group].add_parser(last, help=summary, description=summary)
        if is_group(name):
            groups[name] = parser.add_subparsers()
            continue
        for option in find_interface(name).options:
            _add(parser, option)
        parser.add_argument("--help-all", action="store_true", help="show all options and exit")
    top.add_argument("--version", action="store_true", help="show the version and exit")
    top.add_argument("--completion", choices=SHELLS, help="print a script that completes commands and options")
    return top


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    names = (
        option.spellings[:1]
        if option.positional
        else [one for one in option.spellings if "." not in one] or (option.spellings[:1])
    )
    text = option.help.partition(". ")[0].replace("%", "%%")
    if option.is_flag and not option.positional:
        parser.add_argument(*names, action="store_true", help=text)
        return
    known = option.names or choices(option.kind) or None
    action = parser.add_argument(*names, help=text, choices=known, nargs="+" if option.is_list else None)
    word = option.metavar.removesuffix(" ...")
    if known is None and word in _FILES:
        found = getattr(importlib.import_module("shtab"), _FILES[word])
        setattr(action, "complete", found)  # noqa: B010 - shtab reads an attribute of its own
