"""`mixln data`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

from mixln.announce import announce
from mixln.commands.fields import RecipeFields
from mixln.commands.settings import settled_recipe
from mixln.commands.start import announce_data
from mixln.signatures import checked_arguments
from mixln.tasks.kinds import LANGUAGE
from mixln.tasks.recipe import Recipe

if TYPE_CHECKING:
    from mixln.data import PreparedData

_CORES = os.cpu_count() or 1


@checked_arguments
def prepare(
    *,
    workers: Annotated[int, {"default": _CORES}] = 1,
    out: str | Path | None = None,
    recipe: Recipe | str | Path = "nano",
    cache: str | Path | None = None,
    progress: bool = False,
    **changes: Unpack[RecipeFields],
) -> PreparedData:
    """Tokenise a recipe's corpus ahead of training: into the cache, where `mixln train` and `mixln compare` with the
    same data settings and --cache find it, or with --out into a folder that can be moved, and given as --text. After
    an interruption the same command goes on from the pieces that are finished.

    Example:
        mixln data prepare --recipe 71m --workers 16 --out c4-71m

    Args:
        workers: Processes that tokenise. Default: one for each core. In Python it is 1, since a script with more needs
            the guard `if __name__ == "__main__":`.
        out: A folder to write, which can be moved. Default: the data go to the cache.
        recipe: A recipe, the name of a shipped one, or a YAML file.
        cache: The folder for tokenised data. Default: ~/.cache/mixln.
        progress: Say on standard error how far it is.
        **changes: Fields of the recipe that differ, as for `train`.

    Returns:
        The data; its table has a row for each split.

    Raises:
        InputError: the corpus or the tokenizer cannot be used, or the data do not fill one row.
    """
    settled = settled_recipe(recipe, changes, [LANGUAGE])
    assert isinstance(settled, Recipe)
    announce_data(settled, cache)
    announce(("workers", workers), ("folder", out))
    from mixln.data.prepare import prepare_data
    from mixln.progress import StageProgress

    with StageProgress(shown=progress) as shown:
        return prepare_data(settled.data, cache, shown.report, workers=workers, out=out, report_stage=shown.step)
