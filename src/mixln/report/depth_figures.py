"""Figures of what each layer does, of models side by side or of schemes over their seeds. Imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mixln.report import canvas
from mixln.report.aggregate import Band, depth_of, over_seeds, triangle_matrix
from mixln.report.depth_panels import draw_bars, draw_lines, draw_points, draw_triangles
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.drawing import FILE, Drawing, Format
from mixln.report.results import ComparisonResult
from mixln.report.series import FigureSpec, Series
from mixln.report.style import SchemeStyle, grouped_styles, label_styles, scheme_styles


def draw_models(spec: FigureSpec, models: Sequence[ModelDiagnosis], form: Format = FILE) -> Drawing | None:
    """A figure of models; whiskers and bands are the intervals of their series. None if no model has such a series."""
    bands = {
        model.model: {name: _with_intervals(model.series[name]) for name in spec.series if name in model.series}
        for model in models
    }
    return _draw(spec, bands, form)


def draw_schemes(spec: FigureSpec, result: ComparisonResult, form: Format = FILE) -> Drawing | None:
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
                canvas.remark(f"not {result.terms.learned}", [one.placement for one in missing if one.without_order]),
            ),
        )
    )
    return _draw(spec, bands, form, scheme_styles(result), result.baseline, note)


def _draw(
    spec: FigureSpec,
    subjects: Mapping[str, Mapping[str, Band]],
    form: Format,
    styles: Mapping[str, SchemeStyle] | None = None,
    baseline: str | None = None,
    note: str = "",
) -> Drawing | None:
    """The figure of models or schemes, given by their labels, each with a band for each series that it has."""
    used = [name for name in spec.series if any(name in own for own in subjects.values())]
    if not used:
        return None
    if spec.form == "points":
        both = {label: own for label, own in subjects.items() if len(own) > 1}
        points = {label: (own[used[0]].mean, own[used[1]].mean) for label, own in both.items()}
        return draw_points(points, label_styles(subjects), spec.x, spec.y, form) if points else None
    labels = [_labels(spec, label, used, several=len(subjects) > 1) for label in subjects]
    bands = {
        called[name]: band for called, own in zip(labels, subjects.values(), strict=True) for name, band in own.items()
    }
    units = " / ".join(sorted({band.unit for band in bands.values()}))
    y = "; ".join(filter(None, [spec.y or units, spec.series[used[0]] if len(used) == 1 else ""]))
    if spec.form == "triangles":
        matrices = {label: triangle_matrix(band.mean) for label, band in bands.items()}
        return draw_triangles(matrices, spec.y or "angular distance d(l, n)", form, note)
    if styles is None:
        # of all models, drawn here or not, so that each has its colour in every figure
        styles = grouped_styles(labels) if len(subjects) > 1 else label_styles(labels[0].values())
    if spec.form == "bars":
        return draw_bars(bands, styles, spec.x, y, form, baseline=baseline, remark=note)
    return draw_lines(bands, styles, spec.x, y, form, always_log=spec.log, remark=note)


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
