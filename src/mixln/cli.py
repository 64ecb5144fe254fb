"""The `mixln` command: each subcommand reads its arguments and makes one call into the package.

Exit status: 0 success, 1 training diverged, 2 bad input (one message on standard error, no traceback), 130 interrupted
by Ctrl-C, 143 by SIGTERM; after either, a run has its checkpoint.
"""

from __future__ import annotations

import gc
import io
import json
import os
import re
import shlex
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TextIO

from jsonargparse import ArgumentParser

from mixln.announce import announcements_shown
from mixln.commands import COMMANDS, find_command, is_group
from mixln.commands.arguments import add_arguments, call, option_names
from mixln.errors import FIXABLE_ERRORS, InputError
from mixln.lazy import after_import
from mixln.system_errors import exhaustion, system_error
from mixln.version import __version__

_SUBCOMMAND = "subcommand"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    after_import("transformers.utils.logging", _quiet)
    warnings.showwarning = _show_warning
    options: dict[str, str] = {}
    try:
        first = arguments[0] if arguments and not arguments[0].startswith("-") else ""
        parsers = build_parsers(first)
        options = {name: option for parser in parsers.values() for name, option in option_names(parser).items()}
        name, given = "", parsers[""].parse_args(arguments)
        while _SUBCOMMAND in given:
            name, given = f"{name} {given[_SUBCOMMAND]}".strip(), given[given[_SUBCOMMAND]]
        gc.enable()  # off while the command line starts
        with announcements_shown():
            result = call(find_command(name), parsers[name], given, shlex.join(["mixln", *arguments]))
        _show(result, as_json=given.get("json", False))
    except BrokenPipeError:
        # whoever read the output has enough of it; Python would complain once more when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:  # a panic of a library in Rust is no Exception
        expected = _explain(error)
        if expected is None:
            raise
        message, status = expected
        print(f"mixln: {_with_options(message, options)}", file=sys.stderr)
        return status
    return 0


def _show(result: object, *, as_json: bool) -> None:
    """Print the result of a command; of several processes, the main one does."""
    if result is None:
        return
    from mixln.device import is_main_process
    from mixln.result import Result

    if not isinstance(result, Result) or not is_main_process():  # a text was printed as it came
        return
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        result.print()


def build_parsers(first: str | None = None) -> dict[str, ArgumentParser]:
    """Return the parser of the whole command line, called "", and those of the commands, by their names.

    Args:
        first: the first word of the command line. If it is a command, there is no other then; if not, all are there,
            without arguments. None: all, with arguments.
    """
    top = ArgumentParser(
        prog="mixln",
        description="Train, compare and open transformers under any placement of layer normalisation.",
        exit_on_error=False,
    )
    top.add_argument("--version", action="version", version=f"mixln {__version__}")
    parsers = {"": top}
    groups = {}
    for name, summary in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        is_named = first in (None, name.partition(" ")[0])
        if first in COMMANDS and not is_named:
            continue
        if group not in groups:
            groups[group] = parsers[group].add_subcommands(required=True, dest=_SUBCOMMAND)
        parser = parsers[name] = ArgumentParser(exit_on_error=False)
        if is_group(name):
            parser.description = f"{summary[0].upper()}{summary[1:]}."
        elif is_named:
            add_arguments(parser, find_command(name))
            if group:
                parsers[group].epilog = " ".join(filter(None, [parsers[group].epilog, parser.epilog]))
        groups[group].add_subcommand(last, parser, help=summary)
    return parsers


def _explain(error: BaseException) -> tuple[str, int] | None:
    """Return the message and the exit status for an error that the user can do something about; None for any other."""
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "signal_number", None)  # of a run, which has written a checkpoint
        if number is not None:
            return f"{error}. Run the same command again to go on", 128 + number
        return "interrupted: what it had finished by then is kept", 130
    if isinstance(error, ArgumentError):
        # a message can quote a whole file that is no recipe
        reason = " ".join(str(error).split())[:300].rstrip(".")
        return f"{reason}. `mixln --help` and `mixln COMMAND --help` list what there is", 2
    if isinstance(error, UnicodeDecodeError):
        return f"a file that should be text is not UTF-8 ({error}). Give a text file", 2
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, ValueError):
        from mixln.placement import PlacementError

        if isinstance(error, PlacementError):
            return str(error), 2
    if (message := exhaustion(error)) is not None:
        return message, 2
    if (found := system_error(error)) is not None:
        fix = FIXABLE_ERRORS.get(found.errno or 0, "make sure that this path is what the command expects")
        return f"{found.filename or 'a file'}: {found.strerror or found}. To fix this, {fix}", 2
    if isinstance(error, RuntimeError):
        from mixln.training import TrainingDivergedError

        return (str(error), 1) if isinstance(error, TrainingDivergedError) else None
    return None


def _with_options(message: str, options: Mapping[str, str]) -> str:
    """Return a message with the parameters that it names, `max_tokens` or `by=removal`, written as options."""

    def write(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in options:
            return found[0]
        return options[name] if value is None else f"{options[name]} {value}"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", write, message)


def _quiet(logging: ModuleType) -> None:
    """Turn off what transformers logs below errors, and its progress bars."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of this library as a message to its user; others as Python does."""
    own = category.__module__.split(".")[0] == "mixln"
    text = f"mixln: {message}\n" if own else warnings.formatwarning(message, category, filename, lineno, line)
    print(text, end="", file=file or sys.stderr)
