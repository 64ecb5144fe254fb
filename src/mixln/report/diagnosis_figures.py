"""The figures of a diagnosis, in the forms of the papers. Importing this module imports matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from mixln.report.aggregate import Array, Band
from mixln.report.depth_panels import draw_bars, draw_lines, draw_triangles
from mixln.report.diagnosis import DepthReport, ModelDiagnosis, Series
from mixln.report.diagnosis_summary import RUN_SERIES, SCORE_SERIES, removal_of_score, score_names
from mixln.report.interpretability_figure import draw_interpretability, has_results
from mixln.report.style import grouped_styles, label_styles


@dataclass(frozen=True)
class DiagnosisFigure:
    """A figure of the report.

    Attributes:
        name: its file name without suffix.
        title: heading on the page.
        shows: what it shows, with the formula.
        reading: how to read it.
        series: what it is drawn from; empty: from what `of` looks at.
        draw: draws it, of the models that have these.
        of: whether a model has what it is drawn from, if that is no series.
    """

    name: str
    title: str
    shows: str
    reading: str
    series: tuple[str, ...]
    draw: Callable[[DepthReport], Figure]
    of: Callable[[ModelDiagnosis], bool] = lambda _: False

    def applies(self, report: DepthReport) -> bool:
        """Whether there is anything to draw."""
        return any(self.of(model) or _has(model, self.series) for model in report.models)


def _has(model: ModelDiagnosis, names: tuple[str, ...]) -> bool:
    return any(own == name or (own.startswith(name) and name in _FAMILIES) for own in model.series for name in names)


_FAMILIES = (RUN_SERIES, SCORE_SERIES)
"""What stands for all series whose names begin so."""


def _bands(report: DepthReport, names: dict[str, str]) -> dict[str, Band]:
    """Label to band, of each model and series; `names` maps series to what they are called in the legend."""
    return {
        label: _band(model.series[name])
        for model, labels in zip(report.models, _labels_by_model(report, names), strict=True)
        for name, label in labels.items()
        if name in model.series
    }


def _labels_by_model(report: DepthReport, names: dict[str, str]) -> list[dict[str, str]]:
    """For each model, series to the label that its line or bars have."""
    several = len(report.models) > 1
    return [
        {
            name: ", ".join(part for part in (model.model if several or not called else "", called) if part)
            for name, called in names.items()
        }
        for model in report.models
    ]


def _band(series: Series) -> Band:
    values = np.array(series.values, dtype=float)
    low, high = (
        np.array([np.nan if end is None else end for end in ends], dtype=float) for ends in (series.low, series.high)
    )
    has_interval = bool(np.isfinite(low).any())
    first = 0 if series.axis == "state" else 1
    x = np.arange(first, first + len(values), dtype=float)
    # bands of several draws have whiskers
    return Band(x, values, low, high, 2 if has_interval else 1)


def _triangles(report: DepthReport) -> Figure:
    matrices: dict[str, Array] = {}
    for model in report.models:
        if model.angular_distance:
            matrix = np.full((model.num_layers, model.num_layers), np.nan)
            for index, row in enumerate(model.angular_distance):
                matrix[index, : len(row)] = row
            matrices[model.model] = matrix
    return draw_triangles(matrices)


def _bar_figure(x: str, names: dict[str, str]) -> Callable[[DepthReport], Figure]:
    def draw(report: DepthReport) -> Figure:
        bands = _bands(report, names)
        units = {model.series[name].unit for model in report.models for name in names if name in model.series}
        return draw_bars(bands, label_styles(bands), x, " / ".join(sorted(units)))

    return draw


def _draw_runs(report: DepthReport) -> Figure:
    runs = {name for model in report.models for name in model.series if name.startswith(RUN_SERIES)}
    ordered = sorted(runs, key=lambda name: int(name.removeprefix(RUN_SERIES)))
    return _bar_figure("first removed layer", {name: f"{name.removeprefix(RUN_SERIES)} layers" for name in ordered})(
        report
    )


def _draw_scores(report: DepthReport) -> Figure:
    names = dict.fromkeys(name for model in report.models for name in score_names(model))
    return _bar_figure("removed layer", {removal_of_score(name): name for name in names})(report)


def _line_figure(x: str, title: str, names: dict[str, str], *, log: bool = False) -> Callable[[DepthReport], Figure]:
    def draw(report: DepthReport) -> Figure:
        bands = _bands(report, names)
        several = len(report.models) > 1 and len(names) > 1
        styles = grouped_styles(_labels_by_model(report, names)) if several else label_styles(bands)
        return draw_lines(bands, styles, x, title, always_log=log)

    return draw


FIGURES: tuple[DiagnosisFigure, ...] = (
    DiagnosisFigure(
        "removal",
        "Harm done by removing a layer",
        "dP(l) = P without layer l - P with all layers, no healing (Mix-LN, section 2).",
        "Bars near zero are dead weight. Bars that reach the upper edge are cut off there and carry their value. "
        "Whiskers are 95 % confidence intervals over documents.",
        ("removal",),
        _bar_figure("removed layer", {"removal": ""}),
    ),
    DiagnosisFigure(
        "score_removal",
        "Harm done by removing a layer, by score",
        "Score with all layers - score without layer l.",
        "Tasks need layers that the loss can spare, and the other way round. Whiskers are 95 % confidence intervals "
        "of the difference, over items.",
        (SCORE_SERIES,),
        _draw_scores,
    ),
    DiagnosisFigure(
        "run_removal",
        "Harm done by removing consecutive layers together",
        "dP of removing the n layers from l on; each bar stands at the first of them.",
        "A run can cost more than its layers one by one, or less.",
        (RUN_SERIES,),
        _draw_runs,
    ),
    DiagnosisFigure(
        "sublayer_removal",
        "Harm done by removing attention or feed-forward alone",
        "The output of one sublayer of one layer is replaced by zeros; all else stays.",
        "A layer whose attention bar is near zero and whose feed-forward bar is not works on single tokens alone.",
        ("attention_removal", "feed_forward_removal"),
        _bar_figure("layer", {"attention_removal": "attention", "feed_forward_removal": "feed-forward"}),
    ),
    DiagnosisFigure(
        "angular_distance",
        "Angular distance between layers",
        "d(l, n) = arccos(cos(x_l, x_{l+n})) / π, where x_l is the input of block l, averaged over tokens: how far "
        "the n blocks from l on turn the residual stream (Gromov et al. 2024).",
        "Dark cells are runs of layers that hardly turn it: candidates for removal together. The bottom row (n = 1) "
        "shows what each single layer does. All panels share one scale.",
        (),
        _triangles,
        lambda model: bool(model.angular_distance),
    ),
    DiagnosisFigure(
        "block_influence",
        "Block influence",
        "BI(l) = 1 - cos(x_l, x_{l+1}), averaged over tokens (ShortGPT: Men et al. 2024).",
        "Low bars hardly change their input. Removal is the judge: a layer can turn the stream little and be needed.",
        ("block_influence",),
        _bar_figure("layer", {"block_influence": ""}),
    ),
    DiagnosisFigure(
        "jacobian_distance",
        "Distance of each layer from the identity",
        "|| J - I || / || I || (Frobenius), J the Jacobian of a layer's output by its input (Curse of Depth, "
        "section 2).",
        "0: the layer is the identity map for small changes of its input; 1: as far from it as the zero map is.",
        ("jacobian_distance",),
        _bar_figure("layer", {"jacobian_distance": ""}),
    ),
    DiagnosisFigure(
        "interventions",
        "Swapping and repeating layers",
        "Performance drop when layer l and the next change places, and when layer l runs twice.",
        "Layers that can be swapped or repeated at no cost do work that does not depend on their place.",
        ("swap", "repeat"),
        _bar_figure("layer", {"swap": "swapped", "repeat": "run twice"}),
    ),
    DiagnosisFigure(
        "variance",
        "Variance of the residual stream",
        "Variance over channels after each layer (0: the embeddings), averaged over tokens; logarithmic.",
        "A steep rise means that later layers add ever less to an ever larger stream (the curse of depth).",
        ("variance",),
        _line_figure(
            "after layer (0: the embeddings)", "Variance over channels (log scale)", {"variance": ""}, log=True
        ),
    ),
    DiagnosisFigure(
        "shares",
        "What each sublayer adds",
        "|| F || / || x_l ||, F the output of attention or feed-forward, x_l the input of the layer; averaged over "
        "tokens.",
        "Low values: the sublayer adds little to the stream that passes it.",
        ("attention_share", "feed_forward_share"),
        _line_figure(
            "layer",
            "Share of the sublayer's output",
            {"attention_share": "attention", "feed_forward_share": "feed-forward"},
        ),
    ),
    DiagnosisFigure(
        "gradient_norm",
        "Gradient norm by layer",
        "L2 norm of the loss gradient over all parameters of a layer, at the given weights (and, if it was asked for, "
        "of a fresh initialisation).",
        "At initialisation Pre-LN typically falls with depth, and Post-LN rises.",
        ("gradient_norm", "gradient_norm_at_init"),
        _line_figure(
            "layer", "Gradient norm (L2)", {"gradient_norm": "", "gradient_norm_at_init": "at initialisation"}
        ),
    ),
    DiagnosisFigure(
        "interpretability",
        "What the norms do to the tools of interpretability",
        "Left: what each layer says for the next token against the likeliest other one, by direct logit attribution "
        "(the final norm's scale held) and by its direct effect (taken out of the final state, norm computed anew). "
        "Middle: attribution patching (a gradient) against activation patching on induction prompts, a point for each "
        "sublayer and position. Right: change of the output's entropy when entropy neurons of the last feed-forward "
        "are held at their mean.",
        "Without norms the two lines and the two bars of each pair are one. The grey line in the middle is agreement. "
        "Whiskers are 95 % confidence intervals over documents.",
        (),
        draw_interpretability,
        lambda model: has_results(model.interpretability),
    ),
)
"""The figures in the order of the report."""
