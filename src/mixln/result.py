"""What the functions of the package return: shown alike in a terminal, in a notebook and by `print`, and as a table.

A class of results says what is shown, part by part, what the rows of its table are, and how it is saved:

    @dataclass(frozen=True, repr=False)
    class Comparison(Result):
        def parts(self): yield "one line"; yield a_rich_table
        def rows(self): return [{"placement": "pre", "validation_loss": 4.2}]
        def _write(self, folder): ...

Everything else is here, once.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.jupyter import JupyterMixin
from rich.text import Text

from mixln.records import encode
from mixln.storage import disk_errors, require_new_folder, whole_folder

if TYPE_CHECKING:
    import pandas

_WIDTH = 120
"""Characters of a line where there is no terminal."""


class Result(JupyterMixin, ABC):
    """Base class of results: `print(result)`, a table in a notebook, `to_frame()`, `to_dict()`, `save(folder)`.

    Attributes:
        saved: what `save` wrote last, to be opened first; None: it was not saved.
    """

    saved: Path | None = None

    @abstractmethod
    def parts(self) -> Iterable[RenderableType]:
        """Yield what is shown, from top to bottom: tables, and lines of text."""

    @abstractmethod
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of `to_frame`: the name of each column and its number, text or None."""

    @abstractmethod
    def _write(self, folder: Path) -> Path:
        """Write the result into a folder, and return the file or folder that a person opens first."""

    def save(self, folder: str | Path) -> Path:
        """Write the result into a folder.

        Args:
            folder: to write into; it is created if need be.

        Returns:
            What to open first: a page, or the folder.

        Raises:
            InputError: the folder cannot be written.
        """
        path = self._write(Path(folder))
        object.__setattr__(self, "saved", path)  # of a frozen dataclass; no field, since it is no part of the result
        return path

    def to_frame(self) -> pandas.DataFrame:
        """Return the numbers as a data frame of pandas.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("a data frame needs pandas, which is not installed: pip install pandas") from error
        return pandas.DataFrame([dict(row) for row in self.rows()])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as dictionaries and lists of what JSON knows; numbers that are not finite as None."""
        return {"rows": encode([dict(row) for row in self.rows()], type(self).__name__)}

    def print(self, console: Console | None = None) -> None:
        """Print the result.

        Args:
            console: of rich; None: standard output, 120 characters wide where it is no terminal.
        """
        console = console or terminal()
        for part in self.parts():
            if isinstance(part, str):  # a line, which may be copied: never broken, never coloured
                console.print(part, markup=False, highlight=False, soft_wrap=True)
            else:
                console.print(part)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        del console, options
        for part in self.parts():
            yield Text(part) if isinstance(part, str) else part

    def __str__(self) -> str:
        text = io.StringIO()
        self.print(Console(file=text, width=_WIDTH, color_system=None))
        return text.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary}>"

    @property
    def summary(self) -> str:
        """The first line of text that is shown."""
        return next((part for part in self.parts() if isinstance(part, str)), "no text")


@dataclass(frozen=True)
class Sentence:
    """A sentence or an item of a list, `- item`, which is wrapped between words.

    A line of plain text is for what may be copied, such as a path: it is never wrapped.
    """

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        del console
        indent = "  " if self.text.startswith("- ") else ""
        lines = textwrap.wrap(
            self.text, options.max_width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        yield Text("\n".join(lines), overflow="ignore", no_wrap=True)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class FittingTables:
    """Tables that are made for the width that there is.

    Attributes:
        made: gives the tables for so many characters.
    """

    made: Callable[[int], Iterable[RenderableType]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        del console
        yield from self.made(options.max_width)


def terminal() -> Console:
    """Return the console of standard output.

    Where that is no terminal, it is as wide as COLUMNS or the terminal of standard error says, else 120 characters.
    """
    console = Console()
    if console.is_terminal:
        return console
    try:
        behind = os.get_terminal_size(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2).columns
    except (OSError, ValueError):
        behind = _WIDTH
    return Console(width=int(os.environ.get("COLUMNS") or behind))


def copy_folder(source: Path, folder: Path) -> Path:
    """Copy a folder that a result stands for to another place, whole or not at all.

    Raises:
        InputError: the place holds something, or cannot be written.
    """
    require_new_folder(folder)
    fix = "Make room, or choose another place"
    with disk_errors(f"{folder} could not be written", fix), whole_folder(folder) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
    return folder
