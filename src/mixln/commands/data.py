"""`mixln data`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mixln.commands.arguments import Command, CommandGroup, add_recipe, cache_folder, command_parser, recipe_from
from mixln.data import prepare_data

_EXAMPLE = "mixln data prepare --recipe 71m --workers 16 --out c4-71m"


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln data prepare`."""
    parser = command_parser(
        "Tokenise a recipe's corpus ahead of training: into the cache, where `mixln train` and `mixln compare` with "
        "the same data settings and --cache find it, or with --out into a folder that can be moved, and given as "
        "--corpus. After an interruption the same command goes on from the pieces that are finished.",
        _EXAMPLE,
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that tokenise; default: one for each core"
    )
    parser.add_argument("--out", type=str, default=None, help="write a folder that can be moved, not to the cache")
    add_recipe(parser)
    return parser


def run(given: Namespace, _command: str) -> int:
    """Run `mixln data prepare`."""
    config = recipe_from(given, build_parser()).data
    out = None if given.out is None else Path(given.out)
    data = prepare_data(config, cache_folder(given), _report, workers=given.workers, out=out)
    for name, split in (("training", data.statistics.train), ("validation", data.statistics.validation)):
        print(f"{name}: {split.tokens:,} tokens, {split.documents:,} documents, {split.characters:,} characters")
    print(f"data: {data.folder}")
    return 0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


COMMANDS = CommandGroup(
    "data",
    "work on training data before training",
    [Command("prepare", "tokenise a corpus into memory-mapped shards", build_parser, run)],
)
