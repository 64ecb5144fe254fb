"""Files and folders on disk: written whole or not at all, held by one process, with errors that a user can act on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from mixln.errors import InputError
from mixln.system_errors import disk_reason, exhaustion

_USABLE_FOLDER = "Give a folder with free space that you may write to."


def write_file(path: Path, content: str | bytes) -> Path:
    """Write `content` (text as UTF-8) to `path` by way of a temporary file beside it; folders are created.

    Returns:
        `path`.

    Raises:
        InputError: the disk is full, or the path cannot be written; names the path and the system's reason.
    """
    data = content.encode() if isinstance(content, str) else content
    # Not `tempfile`: its files are readable by their owner alone, and would stay so after the rename.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(f"Cannot write {path}", _USABLE_FOLDER):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def remove_file(path: Path) -> None:
    """Remove `path` if it exists.

    Raises:
        InputError: it cannot be removed.
    """
    with disk_errors(f"Cannot remove {path}", _USABLE_FOLDER):
        path.unlink(missing_ok=True)


def require_new_folder(folder: Path) -> None:
    """Make sure that nothing would be overwritten.

    Raises:
        InputError: the folder is not empty, or is a file, or is given as `.` or `..`.
    """
    if folder.name and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already. Delete it, or choose another place")
    if folder.name in ("", ".."):  # it is first written beside its place, under a name made from its own
        raise InputError(f"{folder} names no new folder: give it a name")


def claim_folder(folder: Path) -> None:
    """Create a folder, and make sure now, before hours of work, that it can be written.

    Raises:
        InputError: it cannot be written.
    """
    with disk_errors(f"{folder} cannot be written", "Choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the same run may have removed it


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill. At the end of the block it becomes `folder`; after an error it is removed.

    What a killed process left behind is removed first.

    Raises:
        OSError: `folder` is not empty, or cannot be written.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of a `whole_folder`; what running ones write stays."""
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        process = leftover.suffixes[-2].removeprefix(".")
        if process.isdecimal() and not _is_running(int(process)):  # other names are not ours
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def put_on_disk(folder: Path) -> None:
    """Flush all files below a folder, and the folders, to the disk itself: they survive a power cut."""
    for path in [*folder.rglob("*"), folder]:
        sync_folder(path)


def sync_folder(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def held_lock(path: Path, otherwise: str, *, report: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock file inside the block, for this process alone.

    Args:
        path: the lock file, whose folder exists.
        otherwise: the message if another process holds it.
        report: called with that message, and then waited for the other process; None: it is an error.

    Raises:
        InputError: another process holds it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if report is None:
            raise InputError(otherwise) from error
        report(otherwise)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def offered_lock(path: Path) -> Iterator[bool]:
    """Hold a lock file inside the block, unless another process holds it; gives whether this one does.

    The system lets go of it when the process ends, however that happens.

    Args:
        path: the lock file; its folder is created.
    """
    with disk_errors(f"{path} cannot be written", _USABLE_FOLDER):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            lock = None
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def disk_errors(what: str, fix: str, *, leftover: Path | None = None) -> Iterator[None]:
    """Make errors of the disk inside the block, whichever library reports them, one message.

    Args:
        what: what could not be done, and where.
        fix: what to do about it, a sentence.
        leftover: a folder to remove then.

    Raises:
        InputError: with `what`, the system's reason and `fix`; or `what` and how to get what the system lacks.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        reason = disk_reason(error) or (isinstance(error, OSError | SafetensorError) and str(error))
        if not reason:
            raise
        if leftover is not None:
            shutil.rmtree(leftover, ignore_errors=True)
        lack = exhaustion(error)  # of memory, threads or open files, which a larger disk does not help
        raise InputError(f"{what}: {lack}" if lack else f"{what} ({reason}). {fix}") from error
