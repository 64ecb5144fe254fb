"""The page of all tables and figures that were reproduced: each claim in one line first, then each table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixln.report.html import page_environment
from mixln.report.reproduction import Reproduction
from mixln.storage import write_file

PAGE_FILE = "reproduction.html"


def write_reproduction_page(tables: Sequence[Reproduction], folder: Path) -> Path:
    """Write the page, and return its path.

    Args:
        tables: in the order of the page.
        folder: of all tables.

    Raises:
        InputError: it cannot be written.
    """
    page = page_environment().get_template("reproduction.html.jinja")
    version = tables[-1].version if tables else ""
    numbers = {f"{table.name}{table.scale}": number for number, table in enumerate(tables, start=1)}
    text = page.render(tables=tables, numbers=numbers, result={"version": version})
    return write_file(folder / PAGE_FILE, text)
