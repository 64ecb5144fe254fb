"""The folder beside an output, where work lies until that is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mixln.errors import InputError
from mixln.files import claim_folder


@contextmanager
def held_folder(folder: Path, lock_name: str, out: Path) -> Iterator[None]:
    """Hold a folder for this process alone, created if need be, within the block.

    Args:
        folder: to hold.
        lock_name: of the file in it that says so.
        out: what the work is for; named in messages.

    Raises:
        InputError: another process works there, or it cannot be written.
    """
    claim_folder(folder)
    lock = FileLock(folder / lock_name)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"another process works in {folder}. Wait for it, or choose another place than {out}"
        ) from error
    try:
        yield
    finally:
        lock.release()
