"""Writing whole files: either the old content stands or the new, never half of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixln.errors import InputError


def write_file(path: Path, content: str | bytes) -> Path:
    """Write `content` (text as UTF-8) to `path` by way of a temporary file beside it; folders are made.

    Returns:
        `path`.

    Raises:
        InputError: the disk is full, or the path cannot be written; names the path and the system's reason.
    """
    data = content.encode() if isinstance(content, str) else content
    # Not `tempfile`: its files are readable by their owner alone, and would stay so after the rename.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unusable("write", path, error) from error
    return path


def require_new_folder(folder: Path) -> None:
    """Make sure that nothing would be overwritten.

    Raises:
        InputError: the folder holds something, or is a file, or is given as `.` or `..`.
    """
    if folder.name in ("", ".."):  # it is written beside its place first, under a name made from its own
        raise InputError(f"{folder} names no new folder: give it a name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already. Delete it, or choose another place")


def claim_folder(folder: Path) -> None:
    """Create a folder, and make sure now, before hours of work, that it can be written.

    Raises:
        InputError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the same run may have been here
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}). Choose another folder") from error


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, which becomes `folder` at the end of the block, or vanishes if that fails.

    Raises:
        OSError: `folder` holds something, or cannot be written.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        process = leftover.suffixes[-2].removeprefix(".")
        if process.isdecimal() and not _is_running(int(process)):  # other names are not ours
            shutil.rmtree(leftover, ignore_errors=True)  # of a kill
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def remove_file(path: Path) -> None:
    """Remove `path` if it is there.

    Raises:
        InputError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unusable("remove", path, error) from error


def put_on_disk(folder: Path) -> None:
    """Have the disk itself hold all files below a folder, and the folders: what is there survives a power cut."""
    for path in [*folder.rglob("*"), folder]:
        sync_folder(path)


def sync_folder(path: Path) -> None:
    """Have the disk itself hold a file, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(action: str, path: Path, error: OSError) -> InputError:
    reason = error.strerror or error
    return InputError(f"Cannot {action} {path}: {reason}. Give a folder with free space that you may write to.")
