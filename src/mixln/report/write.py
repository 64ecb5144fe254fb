"""The whole report on disk."""

from __future__ import annotations

from pathlib import Path

from mixln.files import write_file
from mixln.report.figures import write_figures
from mixln.report.html import write_html
from mixln.report.results import ComparisonResult
from mixln.report.serialize import to_json
from mixln.report.tables import markdown_table


def write_report(result: ComparisonResult, folder: Path) -> Path:
    """Write `results.json`, `table.md`, `figures/` (PNG and SVG) and `report.html`, and return the last one's path.

    The numbers are written first, so that they are safe whatever becomes of the rest.

    Raises:
        InputError: a file cannot be written.
    """
    write_file(folder / "results.json", to_json(result))
    write_file(folder / "table.md", markdown_table(result))
    write_figures(result, folder / "figures")
    return write_html(result, folder / "report.html")
