"""What families of changes of a model cost, as entries."""

from __future__ import annotations

from collections.abc import Mapping

from mixln.measure.interventions import Family
from mixln.measure.performance_drop import PerformanceDrop
from mixln.report.series import Axis, ColumnSpec, FigureSpec
from mixln.studies.measuring import Found, Given, Observed, series_of


class Drops(Observed):
    """The performance drops of a family of interventions, as one series; and the performance of the whole model.

    Args:
        name: of the entry and of its series.
        rank: of the entry.
        family: the interventions.
        axis: of the series.
        of_sublayers: whether the interventions are about sublayers.
        figures: that the series is drawn in.
        columns: of the series.
    """

    measure = PerformanceDrop
    needs_performance = True
    takes_many_passes = True

    def __init__(
        self,
        name: str,
        rank: int,
        family: Family,
        *,
        axis: Axis = "layer",
        of_sublayers: bool = False,
        figures: tuple[FigureSpec, ...] = (),
        columns: tuple[ColumnSpec, ...] = (),
    ) -> None:
        self.name, self.rank, self.needs_sublayers = name, rank, of_sublayers
        self.figures, self.columns = figures, columns
        self._family = family
        self._axis: Axis = axis

    def build(self, given: Given) -> PerformanceDrop:
        """A measure that has seen nothing."""
        assert given.performance is not None
        return PerformanceDrop(self._family, given.performance, given.execution)

    def read(self, measure: PerformanceDrop) -> Found:
        """The drops, if the model runs with any of the changes; a note for each reason why it fails with others."""
        unit = measure.performance.name
        series = [series_of("performance", "model", unit, measure.whole())]
        if measure.has_values:
            series.append(series_of(self.name, self._axis, unit, measure.drop()))
        return Found(series, _failure_notes(self.name, measure.failures))


def _failure_notes(name: str, failures: Mapping[int, str]) -> list[str]:
    places: dict[str, list[str]] = {}
    for place, reason in failures.items():
        places.setdefault(reason, []).append(str(place))
    return [
        f"{name} has no value at {', '.join(own)}: the model cannot run that way ({reason})."
        for reason, own in places.items()
    ]
