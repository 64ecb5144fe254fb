"""Results of a comparison, and their tables, figures and page. Knows plain data, never models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.report.html import write_report as write_report
    from mixln.report.results import ComparisonResult as ComparisonResult
    from mixln.report.results import Constants as Constants
    from mixln.report.results import CurvePoint as CurvePoint
    from mixln.report.results import RunResult as RunResult
    from mixln.report.serialize import from_json as from_json
    from mixln.report.serialize import to_json as to_json
    from mixln.report.statistics import summarize as summarize
    from mixln.report.tables import grid_table as grid_table
    from mixln.report.tables import markdown_table as markdown_table
    from mixln.report.tables import summary_table as summary_table
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
