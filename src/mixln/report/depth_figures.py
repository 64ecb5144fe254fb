"""Figures of what each layer does, of models side by side or of schemes over their seeds. Imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from mixln.report import canvas
from mixln.report.aggregate import Band, depth_of, over_seeds, triangle_matrix, without_depth
from mixln.report.depth_panels import draw_bars, draw_lines, draw_points, draw_triangles
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.results import ComparisonResult
from mixln.report.series import FigureSpec, Series
from mixln.report.style import SchemeStyle, grouped_styles, label_styles, scheme_styles


@dataclass(frozen=True)
class _Subject:
    """What stands beside others in a figure: a model, or a scheme."""

    label: str
    bands: Mapping[str, Band]
    units: Mapping[str, str]


def draw_models(spec: FigureSpec, models: Sequence[ModelDiagnosis]) -> Figure | None:
    """A figure of models; whiskers and bands are the intervals of their series. None if no model has such a series."""
    subjects = [
        _Subject(
            model.model,
            {name: _with_intervals(model.series[name]) for name in spec.series if name in model.series},
            {name: series.unit for name, series in model.series.items()},
        )
        for model in models
    ]
    return _draw(spec, subjects)


def draw_schemes(spec: FigureSpec, result: ComparisonResult) -> Figure | None:
    """A figure of the schemes of a comparison: means over seeds.

    Whiskers and bands reach from the lowest to the highest seed. A scheme without depth measures is left out, with a
    note. None if no scheme has them.
    """
    subjects = [
        _Subject(
            placement,
            {name: over_seeds(own) for name in spec.series if (own := [run[name] for run in runs if name in run])},
            {name: series.unit for run in runs for name, series in run.items()},
        )
        for placement, runs in depth_of(result).items()
    ]
    note = canvas.left_out(without_depth(result))
    return _draw(spec, subjects, scheme_styles(result), result.baseline, note)


def _draw(
    spec: FigureSpec,
    subjects: Sequence[_Subject],
    given_styles: Mapping[str, SchemeStyle] | None = None,
    baseline: str | None = None,
    note: str = "",
) -> Figure | None:
    used = [name for name in spec.series if any(name in subject.bands for subject in subjects)]
    if not used:
        return None
    labels = [_labels(spec, subject.label, used, several=len(subjects) > 1) for subject in subjects]
    if spec.form == "points":
        points = {
            subject.label: (subject.bands[used[0]].mean, subject.bands[used[1]].mean)
            for subject in subjects
            if subject.bands
        }
        return draw_points(points, label_styles(points), spec.x, spec.y)
    bands = {
        own[name]: subject.bands[name]
        for subject, own in zip(subjects, labels, strict=True)
        for name in used
        if name in subject.bands
    }
    if spec.form == "triangles":
        return draw_triangles({label: triangle_matrix(band.mean) for label, band in bands.items()}, note)
    called = spec.series[used[0]] if len(used) == 1 else ""
    units = " / ".join(sorted({subject.units[name] for subject in subjects for name in used if name in subject.units}))
    y = (spec.y or units) + (f"; {called}" if called else "")
    styles = given_styles or label_styles(bands)
    if spec.form == "bars":
        return draw_bars(bands, styles, spec.x, y, baseline=baseline, note=note)
    if len(subjects) > 1 and len(used) > 1:
        styles = grouped_styles(labels)
    return draw_lines(bands, styles, spec.x, y, always_log=spec.log, note=note)


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
    first = 0 if series.axis == "state" else 1
    # bands of several draws have whiskers
    draws = 2 if np.isfinite(low).any() else 1
    return Band(np.arange(first, first + len(values), dtype=float), values, low, high, draws)
