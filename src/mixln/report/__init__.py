"""Results of a comparison, and their tables, figures and page. Knows plain data, never models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.report.html import write_report
    from mixln.report.results import (
        ComparisonResult,
        CurvePoint,
        Difference,
        GridPoint,
        RunResult,
        SchemeSummary,
    )
    from mixln.report.serialize import from_json, to_json
    from mixln.report.statistics import summarize
    from mixln.report.tables import grid_table, markdown_table, summary_table
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ComparisonResult",
    "CurvePoint",
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
