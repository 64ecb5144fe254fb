"""Folders that appear complete or not at all, and that are checked before they are trusted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mixln.manifest import MANIFEST_FILE, read_manifest, write_manifest
from mixln.storage import disk_errors, held_lock

Report = Callable[[str], None]
Accept = Callable[[dict[str, Any] | None], None]

Build = Callable[[Path, Path], dict[str, Any]]


def finished_folder(final: Path, build: Build, report: Report, *, accept: Accept, chosen_by: str) -> dict[str, Any]:
    """Build the folder `final`, if it is not there.

    `build(folder, work)` fills a temporary folder and returns the manifest's entries; checksums of all files are added,
    and the folder is renamed to its name in one step, so what a killed or failing build leaves is never taken for
    complete. `work` is a sibling of `final`, `NAME.partial`, and holds that folder; all in it stays when the build is
    interrupted, for the next one to go on from, and is removed when the folder is complete. A damaged folder is built
    anew. One process builds at a time; others wait and use its result. A complete folder is only read, so it may be on
    a read-only disk.

    Args:
        final: The folder.
        build: See above.
        report: Called with lines of progress.
        accept: Called with the manifest of a folder that is there (None: it is damaged); raises InputError if it is
            not to be used (or not to be replaced).
        chosen_by: The parameter that says where the folder is; for messages.

    Returns:
        The manifest.

    Raises:
        InputError: The disk is full, or the place cannot be written to or read.
    """
    parent = final.parent
    fix = (
        f"Free some space, or choose another folder (`{chosen_by}`); the same command then goes on from the pieces "
        "that are finished"
    )
    with disk_errors(f"cannot store prepared data in {parent}", fix):
        manifest = _found(final, accept, report, rebuild=False)
        if manifest is not None:
            return manifest
        parent.mkdir(parents=True, exist_ok=True)
        lock = parent / f"{final.name}.lock"
        busy = f"another process is preparing the same data; waiting for it (lock file {lock})"
        with held_lock(lock, busy, report=report):
            try:
                manifest = _found(final, accept, report, rebuild=True)
                if manifest is None:  # else another process has built it while we waited
                    manifest = _built(final, build)
            finally:
                with suppress(OSError):
                    lock.unlink()  # while it is ours: who waits for it notices, and takes a new one
    return manifest


def _built(final: Path, build: Build) -> dict[str, Any]:
    work = final.with_name(f"{final.name}.partial")
    folder = work / "data"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)  # of a build that was killed at the very end
    manifest = write_manifest(folder, build(folder, work))
    folder.replace(final)
    shutil.rmtree(work)
    return manifest


def _found(final: Path, accept: Accept, report: Report, *, rebuild: bool) -> dict[str, Any] | None:
    """The manifest of a folder that is complete; with `rebuild`, a damaged one is removed."""
    if final.is_dir() and not any(final.iterdir()):
        return None  # an empty folder is as good as none
    try:
        manifest = read_manifest(final)
    except ValueError as error:
        accept(None)
        if rebuild:
            report(f"prepared data in {final} is damaged ({error}); preparing it anew")
            shutil.rmtree(final)
        return None
    if manifest is not None:
        accept(manifest)
    return manifest
