"""Locks, and errors of the disk as messages."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from mixln.errors import InputError
from mixln.storage import disk_errors, held_lock, whole_folder


def test_a_lock_is_held_by_one_alone_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with (
        held_lock(path, "busy: wait"),
        pytest.raises(InputError, match="busy: wait"),
        held_lock(path, "busy: wait"),
    ):
        pass
    with held_lock(path, "busy: wait"):
        pass


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), r"\(No space left on device\)"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), r"\(No space left on device\)"),
        (SafetensorError("header too large"), r"\(header too large\)"),
    ],
)
def test_an_error_of_the_disk_is_one_message(error: Exception, reason: str) -> None:
    message = f"x could not be written {reason}. Make room"
    with pytest.raises(InputError, match=message), disk_errors("x could not be written", "Make room"):
        raise error


def test_a_lack_of_threads_or_open_files_is_not_blamed_on_the_disk() -> None:
    message = r"x could not be written: Too many open files\. Allow more open files"
    with pytest.raises(InputError, match=message), disk_errors("x could not be written", "Make room"):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("error", [InputError("as it is"), KeyError("a defect"), KeyboardInterrupt()])
def test_other_errors_pass_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, disk_errors("x could not be written", "Make room"):
        raise error
    assert caught.value is error


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "file").touch()
        raise KeyError

    with pytest.raises(KeyError), whole_folder(tmp_path / "out") as temporary:
        fail(temporary)
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "out") as temporary:
        (temporary / "file").touch()
        assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
