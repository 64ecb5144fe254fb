"""The models of a diagnosis, by the names that they have in a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mixln.device import default_device
from mixln.errors import InputError
from mixln.models.load import model_name
from mixln.studies.companion import TOKENIZER, Companion
from mixln.training import MODEL_FOLDER

OpenModel = Callable[[], tuple[nn.Module, Any]]
"""Returns a model and its tokenizer or image processor, on the device where they are used."""


def measured_models(
    models: str | Path | nn.Module | Sequence[str | Path | nn.Module],
    given_companion: Any = None,
    companion: Companion = TOKENIZER,
    *,
    names: Sequence[str] | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
) -> dict[str, OpenModel]:
    """Return how each model is opened when its turn comes, by the name that it is shown with.

    Args:
        models: Hugging Face folders, names on the hub, models in memory; one or several.
        given_companion: of the models in memory: one for all, or one for each of them.
        companion: what it is.
        names: what to call them, one for each; None: by what tells them apart.
        dtype: of those that are opened; see `mixln.models.load.load_model`.
        device_map: the same.

    Raises:
        InputError: there is no model, one is named twice, a companion is missing or is none, or something is no model;
            or the names are not one for each, or not different.
    """
    given = list(models) if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    if not given:
        raise InputError("`models` is empty: give at least one")
    paths = [str(model) for model in given if isinstance(model, str | Path)]
    if len(set(paths)) < len(paths):
        raise InputError("a model is named twice: name each once")
    in_memory = [model for model in given if not isinstance(model, str | Path)]
    companions = _companions(given_companion, companion, len(in_memory))
    sources = [str(model) if isinstance(model, str | Path) else model_name(model) for model in given]
    shown = dict(zip(dict.fromkeys(sources), display_names(list(dict.fromkeys(sources))), strict=True))
    opened: dict[str, OpenModel] = {}
    for model, source in zip(given, sources, strict=True):
        name = _unused(shown[source], opened)
        if isinstance(model, nn.Module):
            opened[name] = partial(_pair, model, companions.pop(0))
        elif isinstance(model, str | Path):
            opened[name] = partial(companion.load, source, dtype=dtype, device=default_device(), device_map=device_map)
        else:
            raise InputError(f"`models`: a {type(model).__name__} is neither a folder, a name on the hub nor a model")
    if names is None:
        return opened
    require_names(names, len(opened))
    if len(set(names)) < len(names):
        raise InputError("`names` has the same name twice: give each model its own")
    return dict(zip(names, opened.values(), strict=True))


def require_names(names: Sequence[str], count: int) -> None:
    """Make sure that there is a name for each model.

    Raises:
        InputError: there are fewer or more, or one is empty.
    """
    if len(names) != count:
        raise InputError(f"`names` has {len(names)} entries, but there are {count} models: give one for each")
    if not all(name.strip() for name in names):
        raise InputError("`names` has an empty name: give each model one that can be read")


def _pair(model: nn.Module, companion: Any) -> tuple[nn.Module, Any]:
    return model, companion


def _companions(given: Any, companion: Companion, count: int) -> list[Any]:
    name = companion.name
    if not count:
        if given is not None:
            raise InputError(f"`{name}` is for a model in memory, and a folder has its own. Leave it out")
        return []
    several = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(several) != count:
        raise InputError(f"`{name}` has {len(several)}, but there are {count} models in memory: give one for each")
    return [companion.require(one) for one in several]


def _unused(name: str, used: dict[str, OpenModel]) -> str:
    number = 2
    unused = name
    while unused in used:
        unused, number = f"{name} ({number})", number + 1
    return unused


def display_names(models: Sequence[str]) -> list[str]:
    """Return short names: of folders the parts of their paths that tell them apart, hub names as they are.

    What all folders end with is left out, and so is the folder in which a run keeps its model; then as much of the end
    of each path is taken as makes all names different.
    """
    folders = {model: _parts(model) for model in models if Path(model).is_dir()}
    same = _common_end(list(folders.values())) if len(folders) > 1 else 0
    parts = {model: own[: len(own) - same] for model, own in folders.items()}
    names: list[str] = []
    for length in range(1, 2 + max(map(len, parts.values()), default=0)):
        names = ["/".join(parts[model][-length:]) if model in parts else model for model in models]
        if len(set(names)) == len(names):
            break
    return names


def _parts(folder: str) -> tuple[str, ...]:
    parts = Path(folder).absolute().parts
    # a run keeps its model in a folder of that name, which says nothing
    return parts[:-1] if parts[-1] == MODEL_FOLDER and len(parts) > 2 else parts


def _common_end(paths: Sequence[tuple[str, ...]]) -> int:
    """How many parts all paths end with; of each, one is left at least."""
    count = 0
    for parts in zip(*(path[:0:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        count += 1
    return count
