"""How this process gets its memory from the system."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""`mallopt`'s numbers, from glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next tensor, instead of giving it back to the system.

    A training step allocates the same large tensors again and again; by default glibc asks the system for each of them
    anew, which then fills it with zeros page by page. For the whole process, from now on; without effect where the C
    library is another (macOS, Windows, musl) and on tensors of a GPU, which has a cache of its own.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    library.mallopt(_TOP_PAD, 64 * 2**20)
