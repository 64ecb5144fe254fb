"""The `mixln` command: finds the subcommand, reads its options and makes one call into the package.

Exit status: 0 success, 1 training diverged, 2 bad input (one message on standard error, no traceback), 130 interrupted
by Ctrl-C, 143 by SIGTERM; after either, a run has its checkpoint.
"""

from __future__ import annotations

import gc
import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TextIO

from mixln.announce import announcements_shown
from mixln.commands import COMMANDS, is_group
from mixln.commands.arguments import find_interface
from mixln.commands.completion import completion
from mixln.commands.help import group_page, help_page, overview_page
from mixln.commands.options import JSON, PLUGIN, Interface, Option, with_options
from mixln.commands.parsing import HELP, HELP_ALL, parse, wants_help
from mixln.errors import FIXABLE_ERRORS, InputError
from mixln.interruption import Interrupted
from mixln.lazy import after_import
from mixln.placement.words import did_you_mean
from mixln.plugins import load_installed_plugins, load_plugin
from mixln.system_errors import exhaustion, system_error
from mixln.version import __version__

_COMPLETION = "--completion"
_VERSION = "--version"


def main(arguments: Sequence[str] | None = None, *, before_leaving: Callable[[], None] = lambda: None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: as on the command line; None: those of this process.
        before_leaving: called before the message of an error is printed. A process that ends with it ignores Ctrl-C
            from then on, so that the exit status is the one of the message.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    after_import("transformers.utils.logging", _quiet)
    warnings.showwarning = _show_warning
    options: dict[str, str] = {}
    try:
        found = find(words)
        if isinstance(found, str):
            print(found, end="")
            return 0
        command, words_of_it = found
        options = command.names()
        given = parse(command, words_of_it)
        for path in given.pop(PLUGIN, []):
            load_plugin(path)
        load_installed_plugins()
        gc.enable()  # off while the command line starts
        as_json = given.pop(JSON, "false")
        with announcements_shown():
            result = call(command, given, shlex.join(["mixln", *words]))
        _show(result, as_json=JSON.read(as_json))
    except BrokenPipeError:
        # whoever read the output has enough of it; Python would complain once more when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:  # a panic of a library in Rust is no Exception
        before_leaving()
        expected = _explain(error)
        if expected is None:
            raise
        message, status = expected
        print(f"mixln: {with_options(message, options)}", file=sys.stderr)
        return status
    return 0


def find(words: Sequence[str]) -> str | tuple[Interface, list[str]]:
    """Return the command that words name, and the words behind it; or a page that they ask for.

    Raises:
        InputError: there is no such command, or no such option before a command.
    """
    first, rest = (words[0], list(words[1:])) if words else ("", [])
    if first.startswith("-"):
        return _page_of_all(first, rest)
    if not first:
        raise InputError("a subcommand is missing. `mixln --help` lists them")
    name = first
    if first in COMMANDS and is_group(first):
        members = {one.removeprefix(f"{first} "): text for one, text in COMMANDS.items() if one.startswith(f"{first} ")}
        if wants_help(rest[:1]) is not None:
            return group_page(first, COMMANDS[first], members)
        if not rest or rest[0] not in members:
            given, which = (f" {rest[0]!r}", did_you_mean(rest[0], members)) if rest else ("", "")
            raise InputError(f"`mixln {first}` has no subcommand{given}.{which} There are: {', '.join(members)}")
        name, rest = f"{first} {rest[0]}", rest[1:]
    if name not in COMMANDS:
        raise InputError(f"there is no subcommand {name!r}.{did_you_mean(name, COMMANDS)} `mixln --help` lists them")
    command = find_interface(name)
    if (everything := wants_help(rest)) is not None:
        return help_page(command, everything=everything)
    return command, rest


def call(command: Interface, given: Mapping[Option, Any], command_line: str) -> Any:
    """Run a command, and return its result."""
    return command.call(given, command_line)


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


def _page_of_all(option: str, rest: Sequence[str]) -> str:
    """Return what an option prints that stands before any command."""
    known = (*HELP, HELP_ALL, _VERSION, _COMPLETION)
    name, _, value = option.partition("=")
    if name in (*HELP, HELP_ALL):
        return overview_page(COMMANDS)
    if name == _VERSION:
        return f"mixln {__version__}\n"
    if name == _COMPLETION:
        return completion(value or "".join(rest[:1]))
    raise InputError(
        f"mixln has no option {name}.{did_you_mean(name, known)} Write the options of a command after its name: "
        "`mixln train --steps 100`"
    )


def _explain(error: BaseException) -> tuple[str, int] | None:
    """Return the message and the exit status for an error that the user can do something about; None for any other."""
    if isinstance(error, KeyboardInterrupt):
        return (str(error), 128 + error.signal_number) if isinstance(error, Interrupted) else ("interrupted", 130)
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
