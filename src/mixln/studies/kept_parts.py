"""What long work has finished so far, on disk: called again, the same work goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mixln.announce import announce
from mixln.errors import InputError
from mixln.records import decode, read_json
from mixln.storage import write_file

Part = TypeVar("Part")


@dataclass(frozen=True)
class _File:
    """What is kept of one model: whose it is, and by the names of the parts what was found and in how many seconds."""

    identity: str
    parts: dict[str, Any]
    seconds: dict[str, float]


class KeptParts(Generic[Part]):
    """Parts of a piece of work, each done once, by this call or by an earlier one.

    Args:
        kind: the dataclass that a part gives.
        folder: where the files of all pieces of work lie; None: nothing is kept.
        identify: returns all that the parts depend on, as JSON; None: it cannot be told, so nothing is kept.
        what: the parts are, in a message: `measures`.

    Attributes:
        seconds: that the parts took which were found finished.
    """

    def __init__(
        self, kind: type[Part], folder: Path | None, identify: Callable[[], Mapping[str, Any] | None], what: str
    ) -> None:
        self.seconds = 0.0
        self._kind = kind
        self._path: Path | None = None
        if folder is None or (identity := identify()) is None:
            return
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._path = folder / f"{digest[:16]}.json"
        self._file, self._parts = self._read(self._path, digest)
        if self._parts:
            announce(("going on", f"these {what} are finished: {', '.join(self._parts)} ({self._path})"))

    @property
    def is_on_disk(self) -> bool:
        """Whether parts are kept."""
        return self._path is not None

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self._path is not None and name in self._parts

    def take(self, name: str, work: Callable[[], Part]) -> Part:
        """Return what a part gives, from disk if it is finished.

        Args:
            name: of the part.
            work: does it.

        Raises:
            InputError: what was found cannot be written; or as `work`.
        """
        if self._path is None:
            return work()
        if name in self._parts:
            self.seconds += self._file.seconds[name]
            return self._parts[name]
        started = time.perf_counter()
        part: Any = work()
        self._file.seconds[name] = time.perf_counter() - started
        self._file.parts[name] = asdict(part)
        self._parts[name] = part
        # infinite numbers are results: a changed model may overflow
        write_file(self._path, json.dumps(asdict(self._file)) + "\n")
        return part

    def _read(self, path: Path, digest: str) -> tuple[_File, dict[str, Part]]:
        """What is kept; nothing if the file is another's or damaged: then the work is done again."""
        try:
            file = decode(_File, read_json(path), path.name)
            if file.identity == digest:
                return file, {name: decode(self._kind, part, path.name) for name, part in file.parts.items()}
        except (OSError, InputError):
            pass
        return _File(digest, {}, {}), {}
