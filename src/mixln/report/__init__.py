"""Results of a comparison, and their tables, figures and page. Knows plain data, never models."""

from __future__ import annotations

from pathlib import Path

from mixln.report.results import (
    ComparisonResult,
    CurvePoint,
    DepthMeasures,
    Difference,
    GridPoint,
    RunResult,
    SchemeSummary,
)
from mixln.report.serialize import from_json, to_json
from mixln.report.statistics import summarize
from mixln.report.tables import grid_table, markdown_table, summary_table

__all__ = [
    "ComparisonResult",
    "CurvePoint",
    "DepthMeasures",
    "Difference",
    "GridPoint",
    "RunResult",
    "SchemeSummary",
    "from_json",
    "grid_table",
    "markdown_table",
    "summarize",
    "summary_table",
    "to_json",
    "write_report",
]


def write_report(result: ComparisonResult, folder: Path) -> Path:
    """Write all files of a comparison; see `mixln.report.write.write_report`."""
    # matplotlib takes a second to import, and most commands draw nothing
    from mixln.report.write import write_report as write

    return write(result, folder)
