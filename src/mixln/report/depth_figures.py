"""Figures of what each layer does, of models side by side or of schemes over their seeds. Imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mixln.report import canvas
from mixln.report.aggregate import Band, depth_of, over_seeds, triangle_matrix
from mixln.report.depth_panels import draw_bars, draw_lines, draw_points, draw_triangles
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.results import ComparisonResult
from mixln.report.series import FigureSpec, Series
from mixln.report.style import SchemeStyle, grouped_styles, label_styles, scheme_styles


def draw_models(spec: FigureSpec, models: Sequence[ModelDiagnosis]) -> Figure | None:
    """A figure of models; whiskers and bands are the intervals of their series. None if no model has such a series."""
    bands = {
        model.model: {name: _with_intervals(model.series[name]) for name in spec.series if name in model.series}
        for model in models
    }
    return _draw(spec, bands)


def draw_schemes(spec: FigureSpec, result: ComparisonResult) -> Figure | None:
    """A figure of the schemes of a comparison: means over seeds.

    Whiskers and bands reach from the lowest to the highest seed. A scheme without depth measures is left out, with a
    note. None if no scheme has them.
    """
    depth = depth_of(result)
    bands = {
        placement: {
            name: over_seeds(own) for name in spec.series if (own := [run[name] for run in runs if name in run])
        }
        for placement, runs in depth.items()
    }
    missing = [summary for summary in result.summaries if summary.placement not in depth]
    note = "; ".join(
        filter(
            None,
            (
                canvas.remark("not measured", [one.placement for one in missing if not one.without_order]),
                canvas.remark("no word order learned", [one.placement for one in missing if one.without_order]),
            ),
        )
    )
    return _draw(spec, bands, scheme_styles(result), result.baseline, note)


def _draw(
    spec: FigureSpec,
    subjects: Mapping[str, Mapping[str, Band]],
    styles: Mapping[str, SchemeStyle] | None = None,
    baseline: str | None = None,
    note: str = "",
) -> Figure | None:
    """The figure of models or schemes, given by their labels, each with a band for each series that it has."""
    used = [name for name in spec.series if any(name in own for own in subjects.values())]
    if not used:
        return None
    if spec.form == "points":
        points = {label: (own[used[0]].mean, own[used[1]].mean) for label, own in subjects.items() if own}
        return draw_points(points, label_styles(points), spec.x, spec.y)
    labels = [_labels(spec, label, used, several=len(subjects) > 1) for label in subjects]
    bands = {
        called[name]: band for called, own in zip(labels, subjects.values(), strict=True) for name, band in own.items()
    }
    units = " / ".join(sorted({band.unit for band in bands.values()}))
    y = "; ".join(filter(None, [spec.y or units, spec.series[used[0]] if len(used) == 1 else ""]))
    if spec.form == "triangles":
        figure = draw_triangles({label: triangle_matrix(band.mean) for label, band in bands.items()})
    elif spec.form == "bars":
        figure = draw_bars(bands, styles or label_styles(bands), spec.x, y, baseline=baseline)
        if baseline in bands and len(bands) > 1:
            note = "; ".join(filter(None, [f"outline: {baseline}", note]))
    else:
        if len(subjects) > 1 and len(used) > 1:
            styles = grouped_styles(labels)
        figure = draw_lines(bands, styles or label_styles(bands), spec.x, y, always_log=spec.log)
    canvas.note(figure, note)
    return figure


def _labels(spec: FigureSpec, subject: str, used: Sequence[str], *, several: bool) -> dict[str, str]:
    """What each series of a subject is called: by what tells it from the others."""
    if len(used) == 1:
        return {used[0]: subject}
    return {
        name: ", ".join(filter(None, (subject if several or not spec.series[name] else "", spec.series[name])))
        for name in used
    }


def _with_intervals(series: Series) -> Band:
    values = np.array(series.values, dtype=float)
    values[~np.isfinite(values)] = np.nan  # a changed model that overflows has no place on an axis
    low, high = np.array([one.interval or (np.nan, np.nan) for one in series.estimates], dtype=float).T
    draws = 2 if np.isfinite(low).any() else 1
    return Band(np.array(series.places, dtype=float), values, low, high, draws, series.unit)
