"""`mixln export`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mixln.commands.arguments import Command, command_parser
from mixln.training.export import export_checkpoint, find_checkpoint


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln export`."""
    parser = command_parser(
        "Write the model of a checkpoint, of a run that is going on, interrupted or finished, as a Hugging Face folder "
        "with its tokenizer. The checkpoint may have been written by several processes; one reads it.",
        "mixln export runs/train exported --step 100",
    )
    parser.add_argument("source", type=str, help="folder of a run (its newest checkpoint), or of one checkpoint")
    parser.add_argument("out", type=str, help="folder to write; must not exist or be empty")
    parser.add_argument("--step", type=int, default=None, help="which checkpoint of a run; default: the newest")
    return parser


def run(given: Namespace, _command: str) -> int:
    """Run `mixln export`."""
    checkpoint = find_checkpoint(Path(given.source), given.step)
    model = export_checkpoint(checkpoint, Path(given.out))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{given.out}: {checkpoint.name}, {model.config.placement}, {parameters:,} parameters")
    return 0


COMMAND = Command("export", "a Hugging Face folder from a run's checkpoint", build_parser, run)
