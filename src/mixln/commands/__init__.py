"""The subcommands of `mixln`, one module each."""

from __future__ import annotations

from mixln.commands import (
    compare,
    convert,
    data,
    diagnose,
    estimate,
    export,
    generate,
    prune,
    remove_norm,
    schemes,
    train,
)
from mixln.commands.arguments import Command, CommandGroup, add_commands, run_command

COMMANDS: list[Command | CommandGroup] = [
    schemes.COMMAND,
    compare.COMMAND,
    train.COMMAND,
    diagnose.COMMAND,
    prune.COMMAND,
    remove_norm.COMMAND,
    estimate.COMMAND,
    data.COMMANDS,
    export.COMMAND,
    generate.COMMAND,
    convert.COMMAND,
]
"""In the order of `mixln --help`."""

__all__ = ["COMMANDS", "Command", "CommandGroup", "add_commands", "run_command"]
