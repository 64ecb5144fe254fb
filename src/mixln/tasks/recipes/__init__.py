"""The shipped recipes: `nano`, the five sizes of Mix-LN, table 9, and the other architectures of the papers."""

from __future__ import annotations

from pathlib import Path

from mixln.errors import InputError

_FOLDER = Path(__file__).parent


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes, smallest model of each family first."""
    order = ["nano", "71m", "130m", "250m", "1b", "7b", "qwen2.5-0.5b", "olmo-1b", "olmo-7b"]
    found = {path.stem for path in _FOLDER.glob("*.yaml")}
    return [name for name in order if name in found] + sorted(found - set(order))


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a shipped recipe, or the path itself if it is a file.

    Raises:
        InputError: it is neither.
    """
    if name_or_path in list_recipes():
        return _FOLDER / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if not path.is_file():
        shipped = ", ".join(list_recipes())
        raise InputError(f"`recipe={name_or_path}`: no such file, and no shipped recipe. Shipped: {shipped}")
    return path
