"""Writing small files so that a reader never sees half of one."""

from __future__ import annotations

from pathlib import Path

from mixln.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, creating its folder.

    Raises:
        InputError: the place cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} could not be written ({error.strerror or error}). Choose another --out") from error
