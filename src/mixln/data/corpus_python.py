"""The corpus that every machine has: documentation and sources of Python's own standard library."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from mixln.data.corpus import Corpus, LeftOut, Part

VERSION = 1
"""Part of the fingerprint; raised when the choice of documents below changes."""

_EXCLUDED_FOLDERS = frozenset(
    {
        # not the standard library itself
        "site-packages", "dist-packages", "__pycache__", "lib-dynload", "ensurepip",
        # tests and their data
        "test", "tests", "idle_test",
        # tables rather than prose or code; the documentation topics are read as documents of their own
        "encodings", "pydoc_data",
    }
)  # fmt: skip
_EXCLUDED_FILES = frozenset({"html/entities.py"})  # one table

# Modules written in C have no source here, so their docstrings stand in for it. A fixed list: importing whatever
# lies in lib-dynload could have side effects. Without sys: programs replace its hooks, and the text must not depend on
# that.
_C_MODULES = (
    "builtins", "math", "cmath", "itertools", "time", "array", "zlib", "binascii", "select", "mmap", "gc",
    "marshal", "unicodedata", "faulthandler", "atexit", "errno", "posix", "pwd", "grp", "fcntl", "resource", "syslog",
    "termios", "_thread", "_io", "_collections", "_functools", "_operator", "_struct", "_random", "_socket", "_ssl",
    "_csv", "_json", "_pickle", "_datetime", "_decimal", "_bisect", "_heapq", "_hashlib", "_ctypes", "_asyncio",
    "_sqlite3", "_signal", "_sre", "_weakref", "_elementtree", "_lzma", "_bz2", "pyexpat",
)  # fmt: skip


class PythonCorpus(Corpus):
    """Help topics, docstrings of C modules and module sources of the running Python; no network, no download.

    About 10 million characters with CPython 3.11. What a distribution has stripped is left out without complaint.
    Order and content are the same on every run of one Python installation.
    """

    def fingerprint(self) -> str:
        """sha256 over the Python version, this corpus's version and every module's path and bytes."""
        # The topics and docstrings belong to the interpreter: its full version string (build date included) stands
        # for them.
        digest = hashlib.sha256(f"python {VERSION} {sys.version} {sys.implementation.cache_tag}".encode())
        for file, relative in _modules():
            digest.update(f"\0{relative}\0".encode())
            try:
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            except OSError:
                digest.update(b"unreadable")
        return digest.hexdigest()

    def parts(self) -> list[Part]:
        """All of it is one part."""
        self.left_out = LeftOut()
        return [None]

    def _read(self, part: Part) -> Iterator[tuple[str, str]]:
        del part
        yield from _topics()
        for name in _C_MODULES:
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue  # this Python was built without it
            if text := _docstrings(module):
                yield text, name
        for file, relative in _modules():
            try:
                # tokenize.open follows the source's own coding cookie.
                with tokenize.open(file) as source:
                    text = source.read()
            except OSError:
                self._lose("unreadable file", relative)
            except (SyntaxError, UnicodeDecodeError):
                self._lose("not text in its declared encoding", relative)
            else:
                if text.strip():  # an empty __init__.py is no loss
                    yield text, relative


def _topics() -> Iterator[tuple[str, str]]:
    try:
        module = importlib.import_module("pydoc_data.topics")
    except ImportError:
        return
    topics: dict[str, str] = module.topics
    for name in sorted(topics):
        yield topics[name], f"topic {name}"


def _modules() -> Iterator[tuple[Path, str]]:
    """Yield (file, path relative to the standard library with forward slashes), sorted by folder, then name."""
    root = Path(sysconfig.get_path("stdlib"))
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name for name in subfolders if name not in _EXCLUDED_FOLDERS and not name.startswith(("config-", "."))
        )
        for name in sorted(names):
            file = Path(folder, name)
            relative = file.relative_to(root).as_posix()
            # _sysconfigdata_* is a dump of the build's settings, full of one machine's paths.
            if name.endswith(".py") and not name.startswith("_sysconfigdata") and relative not in _EXCLUDED_FILES:
                yield file, relative


def _docstrings(module: ModuleType) -> str:
    """The docstrings of a C module, its builtin functions, classes and their methods, as one text."""
    parts = [_entry(module.__name__, module)]
    for name, member in sorted(vars(module).items()):
        if inspect.isclass(member):
            parts.append(_entry(f"class {name}", member))
            parts += [
                _entry(f"{name}.{attribute}", value)
                for attribute, value in sorted(vars(member).items())
                if not attribute.startswith("_")
                and (inspect.ismethoddescriptor(value) or inspect.isgetsetdescriptor(value))
            ]
        elif inspect.isbuiltin(member):
            parts.append(_entry(name, member))
    return "\n\n".join(part for part in parts if part)


def _entry(title: str, member: object) -> str:
    documentation = getattr(member, "__doc__", None)
    if not isinstance(documentation, str):
        return ""
    signature = getattr(member, "__text_signature__", None)
    return f"{title}{signature if isinstance(signature, str) else ''}\n{inspect.cleandoc(documentation)}"
