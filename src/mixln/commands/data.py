"""`mixln data`."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from mixln.tasks.recipe import Recipe

_CORES = os.cpu_count() or 1


def prepare(*, workers: int = _CORES, out: Path | None = None, recipe: Recipe, cache: Path | None = None) -> None:
    """Tokenise a recipe's corpus ahead of training: into the cache, where `mixln train` and `mixln compare` with the
    same data settings and --cache find it, or with --out into a folder that can be moved, and given as --corpus. After
    an interruption the same command goes on from the pieces that are finished.

    Example:
        mixln data prepare --recipe 71m --workers 16 --out c4-71m

    Args:
        workers: processes that tokenise; default: one for each core.
        out: write a folder that can be moved, not to the cache.
        cache: folder for tokenised data; default: ~/.cache/mixln.
    """
    from mixln.data.prepare import prepare_data

    report = partial(print, file=sys.stderr, flush=True)
    data = prepare_data(recipe.data, cache, report, workers=workers, out=out)
    for name, split in (("training", data.statistics.train), ("validation", data.statistics.validation)):
        print(f"{name}: {split.tokens:,} tokens, {split.documents:,} documents, {split.characters:,} characters")
    print(f"data: {data.folder}")
