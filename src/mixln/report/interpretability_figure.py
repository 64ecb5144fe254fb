"""One figure of what norms do to the tools of interpretability: a row of three panels for each model."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mixln.report import canvas
from mixln.report.diagnosis import (
    AttributionResult,
    DepthReport,
    EntropyNeuronsResult,
    InterpretabilityResult,
    PatchingResult,
)
from mixln.report.style import SchemeStyle, label_styles, wrap_label

_LINEAR, _TRUE = "norm held / gradient", "norm computed anew"


def draw_interpretability(report: DepthReport) -> Figure:
    """Attribution by layer, patching as a scatter, entropy neurons as pairs of bars; of the models that have them."""
    models = [(model.model, model.interpretability) for model in report.models if has_results(model.interpretability)]
    styles = label_styles([_LINEAR, _TRUE])
    rows = len(models)
    figure, axes = canvas.panels(rows, 3, rows * 2.7 + canvas.legend_rows([_LINEAR, _TRUE]))
    for row, (name, found) in enumerate(models):
        assert found is not None
        attribution, patching, neurons = axes[3 * row : 3 * row + 3]
        _attribution_panel(attribution, found.attribution, styles)
        _patching_panel(patching, found.patching, styles[_LINEAR])
        _neurons_panel(neurons, found.entropy_neurons, styles)
        if rows > 1:
            attribution.set_ylabel(wrap_label(name, 24), fontsize=9, color=canvas.INK)
    handles = [Patch(facecolor=styles[label].color) for label in (_LINEAR, _TRUE)]
    canvas.legend(figure, handles, [_LINEAR, _TRUE])
    return figure


def has_results(found: InterpretabilityResult | None) -> bool:
    """Whether there is anything to draw."""
    return found is not None and any((found.attribution, found.patching, found.entropy_neurons))


def _attribution_panel(ax: Axes, found: AttributionResult | None, styles: dict[str, SchemeStyle]) -> None:
    if found is None:
        _not_measured(ax, "Direct logit attribution")
        return
    for label, values in ((_TRUE, found.direct_effect), (_LINEAR, found.contribution)):
        x = np.arange(len(values))
        ax.plot(x, values, **canvas.line_options(styles[label], len(values)))
    ax.set_ylim(bottom=0.0)
    canvas.layer_axis(ax, 0, len(found.contribution) - 1)
    canvas.label_axes(ax, "layer (0: the embeddings)", f"Mean |effect|, logits; gap {found.gap:.0%}")


def _patching_panel(ax: Axes, found: PatchingResult | None, style: SchemeStyle) -> None:
    if found is None:
        _not_measured(ax, "Attribution patching")
        return
    ends = [min(found.activation), max(found.activation)]
    ax.add_line(Line2D(ends, ends, color=canvas.FAINT, linewidth=0.8))
    ax.plot(
        found.activation,
        found.attribution,
        linestyle="",
        marker="o",
        markersize=2.5,
        markeredgewidth=0,
        alpha=0.5,
        color=style.color,
    )
    mean = float(np.mean(found.correlation))
    canvas.label_axes(ax, "activation patching, logits", f"Attribution patching, logits; r = {mean:.2f}")


def _neurons_panel(ax: Axes, found: EntropyNeuronsResult | None, styles: dict[str, SchemeStyle]) -> None:
    if found is None:
        _not_measured(ax, "Entropy neurons")
        return
    x = np.arange(len(found.entropy_change))
    ax.bar(x - 0.2, found.entropy_change, width=0.38, color=styles[_TRUE].color)
    ax.bar(x + 0.2, found.entropy_change_held, width=0.38, color=styles[_LINEAR].color)
    for place, low, high in zip(x, found.entropy_change_low, found.entropy_change_high, strict=True):
        if low is not None and high is not None:
            ax.vlines(place - 0.2, low, high, color=canvas.INK, linewidth=0.8)
    ax.axhline(0, color=canvas.FAINT, linewidth=0.8)
    ax.set_xticks(x, [*map(str, found.neurons), "all"], rotation=45)
    canvas.label_axes(ax, "ablated neuron", "Change of entropy, nats per token")


def _not_measured(ax: Axes, title: str) -> None:
    # the axis itself stays: it may carry the model's name
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(title, loc="left", fontsize=9, color=canvas.INK, pad=8)
    ax.text(
        0.5,
        0.5,
        "not measured:\nsee the findings",
        transform=ax.transAxes,
        ha="center",
        va="center",
        fontsize=9,
        color=canvas.FAINT,
    )
