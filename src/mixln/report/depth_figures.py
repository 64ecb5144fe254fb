"""Figures of depth: what each layer of each scheme does."""

from __future__ import annotations

from matplotlib.figure import Figure

from mixln.report import canvas
from mixln.report.aggregate import Band, depth_bands, mean_angular_distance, without_depth
from mixln.report.depth_panels import draw_bars, draw_lines, draw_triangles
from mixln.report.results import ComparisonResult
from mixln.report.style import scheme_styles

_NOTHING = "No run has depth measures."


def gradient_norms(result: ComparisonResult) -> Figure:
    """L2 norm of the loss gradient of each layer at initialisation, one line a scheme."""
    bands = depth_bands(result, lambda depth: depth.gradient_norm_at_init, first=1)
    return _lines(result, bands, "layer", "Gradient norm of the layer at initialisation (L2)", always_log=False)


def variance(result: ComparisonResult) -> Figure:
    """Variance of the hidden state after each layer, on a logarithmic axis, one line a scheme."""
    bands = depth_bands(result, lambda depth: depth.variance, first=0)
    title = "Variance of the hidden state over channels, after training (log scale)"
    return _lines(result, bands, "after layer (0: the embeddings)", title, always_log=True)


def angular_distance_heatmaps(result: ComparisonResult) -> Figure:
    """Angular distance d(l, n) between the inputs of blocks l and l + n: one triangle a scheme, one colour scale."""
    matrices = mean_angular_distance(result)
    if not matrices:
        return canvas.empty(_NOTHING)
    return draw_triangles(matrices, canvas.left_out(without_depth(result)))


def removal_loss(result: ComparisonResult) -> Figure:
    """Increase of the validation loss when each layer is removed, one panel a scheme; whiskers: extreme seeds."""
    bands = depth_bands(result, lambda depth: depth.removal_loss_increase, first=1)
    if not bands:
        return canvas.empty(_NOTHING)
    return draw_bars(
        bands,
        scheme_styles(result),
        "removed layer",
        "Loss increase (nats/token)",
        baseline=result.baseline,
        note=canvas.left_out(without_depth(result)),
    )


def _lines(result: ComparisonResult, bands: dict[str, Band], x: str, title: str, *, always_log: bool) -> Figure:
    if not bands:
        return canvas.empty(_NOTHING)
    note = canvas.left_out(without_depth(result))
    return draw_lines(bands, scheme_styles(result), x, title, always_log=always_log, note=note)
