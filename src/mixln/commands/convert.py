"""`mixln convert`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mixln.commands.arguments import Command, command_parser
from mixln.models.convert import save_converted


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln convert`."""
    parser = command_parser(
        "Read a checkpoint folder of the published Mix-LN / LayerNorm Scaling training code, whose config does not say "
        "how its norms are placed, and write one that AutoModelForCausalLM opens.",
        "mixln convert checkpoints/model_10001 converted --placement 'mix(post_layers=3)'",
    )
    parser.add_argument("source", type=str, help="folder with config.json and the weights")
    parser.add_argument("out", type=str, help="folder to write; must not exist or be empty")
    parser.add_argument("--placement", type=str, required=True, help="the placement that it was trained with")
    return parser


def run(given: Namespace, _command: str) -> int:
    """Run `mixln convert`."""
    model = save_converted(Path(given.source), Path(given.out), given.placement)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{given.out}: {model.config.placement}, {parameters:,} parameters")
    return 0


COMMAND = Command("convert", "import a checkpoint of the published training code", build_parser, run)
