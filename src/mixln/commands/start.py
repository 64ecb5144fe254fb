"""What commands say at their start, before they import what takes seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mixln.announce import announce, format_count
from mixln.errors import InputError
from mixln.hub import require_access
from mixln.sources import check_corpus, describe_corpus, describe_model
from mixln.tasks.kinds import AnyRecipe, kind_of

_TASK_FILES = (".yaml", ".yml")
"""Endings of files that describe a task: it can name others that are elsewhere."""


def announce_models(models: Any) -> None:
    """Say of each model what it is: of a folder or a name on the hub, or of one in memory.

    Raises:
        InputError: a folder or name cannot be there.
    """
    is_one = isinstance(models, str) or hasattr(models, "named_parameters") or not isinstance(models, Iterable)
    several = [models] if is_one else models
    for model in several:
        is_name = isinstance(model, str | Path)
        announce(("model", describe_model(str(model)) if is_name else f"a {type(model).__name__} in memory"))


def announce_recipe(
    recipe: AnyRecipe, out: Path | None, cache: str | Path | None, placements: Iterable[str] = (), runs: int = 1
) -> None:
    """Say what a recipe is going to train, on what, and where it will be.

    Args:
        recipe: of one run, or what several share.
        out: folder of the run.
        cache: folder for tokenised data.
        placements: of several runs; none: the recipe's.
        runs: how many there are.

    Raises:
        InputError: data or tokenizer are on the hub, which does not answer, and are not in the cache.
    """
    kind = kind_of(recipe)
    placed = ", ".join(placements) or recipe.model.placement
    steps = kind.budget_in_words(recipe)
    announce(
        ("model", f"{kind.model_in_words(recipe)}, {placed}"),
        ("steps", steps if runs == 1 else f"{steps}, in each of {runs} runs"),
    )
    announce_data(recipe, cache)
    announce(("folder", out))


def announce_data(recipe: AnyRecipe, cache: str | Path | None) -> None:
    """Say on what a recipe trains.

    Raises:
        InputError: as `announce_recipe`.
    """
    for fact in kind_of(recipe).data_facts(recipe, cache):
        announce(fact)


def announce_text(text: str | Path, name: str = "text") -> None:
    """Say which text is read.

    Raises:
        InputError: it is a dataset of the hub, which does not answer, and the cache does not have it.
    """
    announce((name, describe_corpus(str(text))))
    check_corpus(str(text))


def announce_tasks(names: Sequence[str], task_path: str | Path | None) -> None:
    """Say which tasks a model is to do.

    Raises:
        InputError: their data are on the hub, which does not answer, and the cache holds no data of tasks; or all of
            them are files, and none can be in `task_path`.
    """
    by_name = [name for name in names if not Path(name).exists() or Path(name).suffix in _TASK_FILES]
    if task_path is not None and names and not by_name:
        raise InputError(
            f"`task_path={task_path}` has tasks that are called by name, and {', '.join(map(str, names))} is found as "
            "a file or folder. Name a task of it, or leave `task_path` out"
        )
    announce(("tasks", ", ".join(map(str, names)) or None))
    # a task can be a file or a folder too, and one of `task_path` may have its data in local files
    on_hub = [str(name) for name in names if not Path(name).exists() and not Path(name).suffix]
    if on_hub and task_path is None:
        require_access(", ".join(on_hub), "task", local=False)


def announce_opened(model: Any) -> None:
    """Say how large a model is, and where and in which precision it runs."""
    from mixln.device import describe_device

    parameter = next(model.parameters())
    announce(
        ("size", format_count(sum(one.numel() for one in model.parameters()), "parameters")),
        ("device", describe_device(parameter.device)),
        ("precision", f"{str(parameter.dtype).removeprefix('torch.')}, not compiled"),
    )
