"""The subcommands of `mixln`, one module each."""

from __future__ import annotations

from mixln.commands import compare, convert, data, estimate, export, generate, train
from mixln.commands.arguments import Command

COMMANDS: list[Command] = [
    compare.COMMAND,
    train.COMMAND,
    estimate.COMMAND,
    data.COMMAND,
    export.COMMAND,
    generate.COMMAND,
    convert.COMMAND,
]
"""In the order of `mixln --help`."""

__all__ = ["COMMANDS", "Command"]
