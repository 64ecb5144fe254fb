"""Folders that appear complete or not at all, and that are checked before they are trusted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mixln.errors import InputError

MANIFEST_FILE = "manifest.json"

_MENDABLE = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG
})  # fmt: skip
_BLOCK = 1 << 20
_MAX_BLOCKS = 64

Report = Callable[[str], None]


def checksum(path: Path) -> str:
    """sha256 over the size and 1-MiB blocks: all of them up to 64 MiB, else 64 spread evenly from first to last.

    Sampling keeps the check of a terabyte instant; it finds files that were cut, replaced or zeroed, not one bad bit.
    """
    size = path.stat().st_size
    result = hashlib.sha256(str(size).encode())
    blocks = -(-size // _BLOCK)
    chosen = range(blocks) if blocks <= _MAX_BLOCKS else [i * (blocks - 1) // (_MAX_BLOCKS - 1) for i in range(64)]
    with path.open("rb") as stream:
        for block in chosen:
            stream.seek(block * _BLOCK)
            result.update(stream.read(_BLOCK))
    return result.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete folder.

    Returns:
        None if there is no such folder.

    Raises:
        ValueError: The folder is damaged; the message says how.
    """
    if not folder.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        files: dict[str, str] = manifest["files"]
        for name, expected in files.items():
            if checksum(folder / name) != expected:
                raise ValueError(f"{name} has changed")
    except FileNotFoundError as error:
        raise ValueError(f"{Path(str(error.filename)).name} is missing") from error
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{MANIFEST_FILE} is unreadable") from error
    return manifest


def cached_folder(
    parent: Path, key: str, build: Callable[[Path], dict[str, Any]], report: Report
) -> tuple[Path, dict[str, Any]]:
    """The folder `parent/key`, built if it is not there.

    `build(folder)` fills an empty temporary sibling and returns the manifest's entries; checksums of all files are
    added, and the folder is renamed to its name in one step, so what a killed or failing build leaves is never taken
    for complete (the next build removes it). A damaged folder is built anew. One process builds at a time; others wait
    and use its result. A complete folder is only read, so the cache may be on a read-only disk.

    Returns:
        The folder and its manifest.

    Raises:
        InputError: The disk is full, or `parent` cannot be written to or read.
    """
    final = parent / key
    with _disk_errors(parent):
        try:
            manifest = read_manifest(final)
        except ValueError:
            manifest = None  # said below, by the one process that mends it
        if manifest is not None:
            return final, manifest
        parent.mkdir(parents=True, exist_ok=True)
        with _lock(parent / f"{key}.lock", report):
            try:
                manifest = read_manifest(final)
            except ValueError as error:
                report(f"prepared data in {final} is damaged ({error}); preparing it anew")
                shutil.rmtree(final)
            if manifest is not None:  # another process has built it while we waited
                return final, manifest
            for stale in parent.glob(f"{key}.tmp-*"):  # of a killed build: the lock is ours, so nobody works there
                shutil.rmtree(stale)
            temporary = parent / f"{key}.tmp-{os.getpid()}"
            temporary.mkdir()
            try:
                manifest = build(temporary)
                manifest["files"] = {
                    file.relative_to(temporary).as_posix(): checksum(file)
                    for file in sorted(temporary.rglob("*"))
                    if file.is_file()
                }
                text = json.dumps(manifest, indent=2) + "\n"
                (temporary / MANIFEST_FILE).write_text(text, encoding="utf-8")
                temporary.replace(final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    return final, manifest


@contextmanager
def _lock(path: Path, report: Report) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"another process is preparing the same data; waiting for it (lock file {path})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors(parent: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        raise InputError(
            f"cannot store prepared data in {error.filename or parent}: {error.strerror}; free some space or choose "
            "another folder as cache_dir"
        ) from error
