"""Errors of the operating system behind the errors of libraries: a full disk, too little memory, too many threads.

Python raises OSError and MemoryError for them. Libraries in Rust raise a bare `Exception` or a panic, with the system's
error number in the text. PyTorch raises RuntimeError, or an exception of its own that collects those of all processes.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Any

_RUST_ERROR = re.compile(r"\(os error (\d+)\)|\bOs \{ code: (\d+)")
"""How tokenizers and safetensors report an error of the system: in an error, in a panic."""

_LIMITS = {
    errno.EAGAIN: "Allow more processes and threads (ulimit -u), or end some",
    errno.EMFILE: "Allow more open files (ulimit -n)",
    errno.ENFILE: "Close some programs",
}

_CHECKPOINTS = "torch.distributed.checkpoint.api"

_OUT_OF_MEMORY = "not enough memory. Choose a smaller model, batch_size or micro_batch_size"


def system_error(error: BaseException) -> OSError | None:
    """Return the error of the operating system behind an error of any library, or None."""
    if isinstance(error, OSError):
        return error if error.errno is not None else _from_text(error)
    if failures := getattr(error, "failures", None) if _is_of(error, _CHECKPOINTS, "CheckpointException") else None:
        found = (system_error(failure[0]) for failure in failures.values())
        return next((reason for reason in found if reason is not None), None)
    if (found := _from_text(error)) is not None:
        return found
    if "PytorchStreamWriter" not in str(error) and "enforce fail at inline_container" not in str(error):
        return None
    # the error of torch's zip writer follows the one that has the system's reason
    before = error.__cause__ or error.__context__
    return (before and system_error(before)) or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_reason(error: BaseException) -> str | None:
    """Return the system's reason in words if an error of any library comes from the system, else None."""
    found = system_error(error)
    return None if found is None else found.strerror or str(found)


def exhaustion(error: BaseException) -> str | None:
    """Return the message for an error that is lack of memory, threads or open files; else None."""
    if isinstance(error, MemoryError) or _is_of(error, "torch", "OutOfMemoryError"):
        return _OUT_OF_MEMORY
    # for CPU memory, memory-mapped files and threads, PyTorch and Python raise nothing but RuntimeError
    if isinstance(error, RuntimeError) and re.search(r"DefaultCPUAllocator|unable to mmap .*\(12\)", str(error)):
        return _OUT_OF_MEMORY
    number = errno.EAGAIN if isinstance(error, RuntimeError) and "can't start new thread" in str(error) else None
    found = system_error(error)
    number = number or (found.errno if found is not None else None)
    if number == errno.ENOMEM:
        return _OUT_OF_MEMORY
    if number not in _LIMITS:
        return None
    what = {errno.EAGAIN: "no further thread or process can be started"}.get(number, os.strerror(number))
    return f"{what}. {_LIMITS[number]}, and run the same command again"


def _is_of(error: BaseException, module: str, name: str) -> bool:
    """Whether an error is of a class of a module that this one does not import: it takes seconds."""
    kind: Any = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)


def _from_text(error: BaseException) -> OSError | None:
    found = _RUST_ERROR.search(str(error))
    if found is None:
        return None
    number = int(found[1] or found[2])
    return OSError(number, os.strerror(number))
