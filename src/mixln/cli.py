"""The `mixln` command: each subcommand reads its arguments and makes one call into the package.

Exit status: 0 success, 1 training diverged, 2 bad input (one message on standard error, no traceback), 130 interrupted
by Ctrl-C, 143 by SIGTERM; after either, a run has its checkpoint.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from typing import TextIO

import transformers
from jsonargparse import ArgumentParser

from mixln.commands import COMMANDS, add_commands, run_command
from mixln.errors import MENDABLE_ERRORS, InputError
from mixln.placement import PlacementError
from mixln.training import TrainingDivergedError, TrainingInterrupted
from mixln.training.recipes import find_recipe
from mixln.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.showwarning = _show_warning
    try:
        given = build_parser().parse_args(_with_recipe_files(arguments))
        return run_command(COMMANDS, given, shlex.join(["mixln", *arguments]))
    except ArgumentError as error:
        # a message can quote a whole file that is no recipe
        reason = " ".join(str(error).split())[:300].rstrip(".")
        return _fail(f"{reason}. `mixln --help` and `mixln COMMAND --help` list what there is")
    except (InputError, PlacementError) as error:
        return _fail(str(error))
    except TrainingDivergedError as error:
        return _fail(str(error), status=1)
    except BrokenPipeError:
        # whoever read the output has enough of it; Python would complain once more when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UnicodeDecodeError as error:
        return _fail(f"a file that should be text is not UTF-8 ({error}). Give a text file")
    except OSError as error:
        mend = MENDABLE_ERRORS.get(error.errno or 0, "see to it that this path is what the command takes it for")
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}. To mend it, {mend}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            raise
        return _fail("not enough memory. Choose a smaller model, batch_size or micro_batch_size")
    except TrainingInterrupted as error:
        return _fail(f"{error}. Run the same command again to go on", status=128 + error.signal_number)
    except KeyboardInterrupt:
        return _fail("interrupted. Run the same command again: what it had finished by then is kept", status=130)


def build_parser() -> ArgumentParser:
    """Return the parser of the whole command line."""
    parser = ArgumentParser(
        prog="mixln",
        description="Train, compare and open transformers under any placement of layer normalisation.",
        exit_on_error=False,
    )
    parser.add_argument("--version", action="version", version=f"mixln {__version__}")
    add_commands(parser, COMMANDS)
    return parser


def _with_recipe_files(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the names of shipped recipes after `--recipe` replaced by their files."""
    resolved: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before == "--recipe":
            argument = str(find_recipe(argument))
        elif argument.startswith("--recipe="):
            argument = f"--recipe={find_recipe(argument.removeprefix('--recipe='))}"
        resolved.append(argument)
    return resolved


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


def _fail(message: str, status: int = 2) -> int:
    print(f"mixln: {message}", file=sys.stderr)
    return status
