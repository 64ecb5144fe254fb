"""`mixln estimate`."""

from __future__ import annotations

import json

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from mixln.commands.arguments import Command, add_recipe, command_parser, recipe_from
from mixln.training.estimate import device_names, estimate, print_estimate


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln estimate`."""
    parser = command_parser(
        "Say what a recipe's run needs before it is started: parameters, floating-point operations, memory of each "
        "device for each way of sharing the model, time and cost. Nothing is trained or downloaded.",
        "mixln estimate --recipe 71m --device h100 --count 8 --price 2.5",
    )
    parser.add_argument(
        "--device",
        type=str,
        default="cpu",
        help=f"{', '.join(device_names())}; cpu, the default: this machine's, measured in about two seconds",
    )
    parser.add_argument("--count", type=int, default=1, help="number of devices")
    parser.add_argument(
        "--utilization",
        type=float,
        default=None,
        help="share of its peaks that the device reaches over a training step; default: by device, printed",
    )
    parser.add_argument("--price", type=float, default=None, help="of one device for one hour, in any currency")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes, seconds and hours")
    add_recipe(parser)
    return parser


def run(given: Namespace, _command: str) -> int:
    """Run `mixln estimate`."""
    given.out = None  # as other commands have it; this one writes nothing
    recipe = recipe_from(given, build_parser())
    result = estimate(recipe, given.device, given.count, utilization=given.utilization, price_per_hour=given.price)
    if given.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        print_estimate(result, Console())
    return 0


COMMAND = Command("estimate", "memory, time and cost of a run before it is started", build_parser, run)
