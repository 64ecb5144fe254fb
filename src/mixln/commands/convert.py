"""`mixln convert`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mixln.commands.arguments import Command, command_parser
from mixln.errors import InputError
from mixln.models.convert import save_converted
from mixln.models.published import PUBLISHED_NORM_TYPES, published_placement


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln convert`."""
    parser = command_parser(
        "Read a checkpoint folder of the published Mix-LN / LayerNorm Scaling training code, whose config does not say "
        "how its norms are placed, and write one that AutoModelForCausalLM opens.",
        "mixln convert checkpoints/model_10001 converted --placement 'mix(post_layers=3)'",
    )
    parser.add_argument("source", type=str, help="folder with config.json and the weights")
    parser.add_argument("out", type=str, help="folder to write; must not exist or be empty")
    parser.add_argument("--placement", type=str, default=None, help="the placement that it was trained with")
    parser.add_argument(
        "--norm-type",
        type=str,
        default=None,
        help=f"or the NORM_TYPE of the training script: {', '.join(PUBLISHED_NORM_TYPES)}",
    )
    parser.add_argument("--post-num", type=int, default=None, help="and its POST_NUM, for Mix-LN")
    return parser


def _placement(given: Namespace) -> str:
    """Return the placement that the user states in one of two ways."""
    if (given.placement is None) == (given.norm_type is None):
        raise InputError("state how the norms are placed: either --placement, or the published code's --norm-type")
    if given.norm_type is None and given.post_num is not None:
        raise InputError("--post-num goes with --norm-type; in a --placement write mix(post_layers=...)")
    return published_placement(given.norm_type, given.post_num) if given.placement is None else given.placement


def run(given: Namespace, _command: str) -> int:
    """Run `mixln convert`."""
    model = save_converted(Path(given.source), Path(given.out), _placement(given))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{given.out}: {model.config.placement}, {parameters:,} parameters")
    return 0


COMMAND = Command("convert", "import a checkpoint of the published training code", build_parser, run)
