"""Folders that appear complete or not at all, and that are checked before they are trusted."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mixln.errors import MENDABLE_ERRORS, InputError

MANIFEST_FILE = "manifest.json"

_BLOCK = 1 << 20
_MAX_BLOCKS = 64

Report = Callable[[str], None]
Accept = Callable[[dict[str, Any] | None], None]


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


def write_manifest(folder: Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a folder that is otherwise complete: the entries, and the checksums of all files."""
    files = {
        file.relative_to(folder).as_posix(): checksum(file) for file in sorted(folder.rglob("*")) if file.is_file()
    }
    manifest = {**entries, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


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


Build = Callable[[Path, Path], dict[str, Any]]


def finished_folder(final: Path, build: Build, report: Report, *, accept: Accept) -> dict[str, Any]:
    """Build the folder `final`, if it is not there.

    `build(folder, work)` fills an empty temporary sibling of `final` and returns the manifest's entries; checksums of
    all files are added, and the folder is renamed to its name in one step, so what a killed or failing build leaves is
    never taken for complete (the next build removes it). `work` is a sibling too, `NAME.pieces`, for what the build
    wants to find again if it is interrupted; it is removed when the folder is complete. A damaged folder is built
    anew. One process builds at a time; others wait and use its result. A complete folder is only read, so it may be on
    a read-only disk.

    Args:
        final: The folder.
        build: See above.
        report: Called with lines of progress.
        accept: Called with the manifest of a folder that is there (None: it is damaged); raises InputError if it is
            not to be used (or not to be replaced).

    Returns:
        The manifest.

    Raises:
        InputError: The disk is full, or the place cannot be written to or read.
    """
    parent = final.parent
    with _disk_errors(parent):
        manifest = _found(final, accept, report, mend=False)
        if manifest is not None:
            return manifest
        parent.mkdir(parents=True, exist_ok=True)
        with _lock(parent / f"{final.name}.lock", report):
            manifest = _found(final, accept, report, mend=True)
            if manifest is not None:  # another process has built it while we waited
                return manifest
            for stale in parent.glob(f"{glob.escape(final.name)}.tmp-*"):
                shutil.rmtree(stale)  # of a killed build: the lock is ours, so nobody works there
            work = parent / f"{final.name}.pieces"
            temporary = parent / f"{final.name}.tmp-{os.getpid()}"
            temporary.mkdir()
            try:
                manifest = write_manifest(temporary, build(temporary, work))
                temporary.replace(final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            shutil.rmtree(work, ignore_errors=True)
    return manifest


def _found(final: Path, accept: Accept, report: Report, *, mend: bool) -> dict[str, Any] | None:
    """The manifest of a folder that is complete; with `mend`, a damaged one is removed."""
    if final.is_dir() and not any(final.iterdir()):
        return None  # an empty folder is as good as none
    try:
        manifest = read_manifest(final)
    except ValueError as error:
        accept(None)
        if mend:
            report(f"prepared data in {final} is damaged ({error}); preparing it anew")
            shutil.rmtree(final)
        return None
    if manifest is not None:
        accept(manifest)
    return manifest


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
        with suppress(OSError):
            path.unlink()  # while it is ours: who waits for it notices, and takes a new one
        lock.release()


@contextmanager
def _disk_errors(parent: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in MENDABLE_ERRORS:
            raise
        raise InputError(
            f"cannot store prepared data in {error.filename or parent}: {error.strerror}; free some space or choose "
            "another folder (--cache, --out); the same command then goes on from the pieces that are finished"
        ) from error
