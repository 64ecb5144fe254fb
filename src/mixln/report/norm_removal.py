"""What a norm removal reports, and its figure: the loss, with every removal marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mixln.report import canvas
from mixln.report.aggregate import moving_average
from mixln.report.drawing import FILE, Drawing, Format
from mixln.report.style import SchemeStyle, label_styles

NORM_FREE = "norms removed"
CONTROL = "control, with norms"
ORIGINAL = "the model as it was"
_SMOOTHED_STEPS = 9
_DOTTED = SchemeStyle(canvas.FAINT, ":", "", "")

KINDS = {
    "feed_forward": "feed-forward",
    "query_key": "attention: query and key",
    "value": "attention: value",
    "final": "final norm",
    "end_of_text": "end of text",
    "first_position": "first position",
}
"""What a removal's target is called in figures."""


@dataclass(frozen=True)
class RemovalRecord:
    """One removal that was made.

    Attributes:
        target: what went: feed_forward, query_key, value or final, as the norm's reader is called, or end_of_text or
            first_position, the exception for such positions.
        layer: from 1; None: of no layer.
        step: the training step, from 1, before which it went.
    """

    target: str
    layer: int | None
    step: int


@dataclass(frozen=True)
class NormRemovalReport:
    """What `norm_removal.json` says. Losses are of the same held-out text, in nats per token.

    Attributes:
        source: the model.
        source_sha256: of its config and weights.
        text: trained on.
        validation_tokens: that the losses are over.
        loss_original: of the model as it was; this and the others of weights as they are saved, computed in float32.
        loss_control: fine-tuned equally long, on the same batches, with its norms; None: not asked for.
        loss_norm_free: without any norm.
        train_tokens: predicted in training.
        precision: of training, and why.
        removals: in their order.
        waited_steps: in which a removal was due, and a spike of the loss held it up.
        num_roll_backs: how often training went back to before a removal.
        folding_difference: the largest difference that folding made to a logit, in float32; before rounding to the
            dtype that the model is saved in.
        largest_logit: by absolute value.
        config: how norms were removed.
        data_fingerprint: of the prepared text.
        version: of mixln.
    """

    source: str
    source_sha256: str
    text: str
    validation_tokens: int
    loss_original: float
    loss_control: float | None
    loss_norm_free: float
    train_tokens: int
    precision: str
    removals: tuple[RemovalRecord, ...]
    waited_steps: int
    num_roll_backs: int
    folding_difference: float
    largest_logit: float
    config: dict[str, Any]
    data_fingerprint: str
    version: str

    @property
    def sentence(self) -> str:
        """The losses, in a line."""
        control = "" if self.loss_control is None else f", {self.loss_control:.4f} fine-tuned with norms"
        return (
            f"validation loss {self.loss_original:.4f} before{control}, {self.loss_norm_free:.4f} without norms "
            f"({self.train_tokens:,} tokens; folding changed logits of up to {self.largest_logit:.3g} by at most "
            f"{self.folding_difference:.2g})"
        )


def removal_figure(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    removals: Sequence[RemovalRecord],
    loss_original: float,
    form: Format = FILE,
) -> Drawing:
    """Training loss (faint, smoothed) and validation loss (marked) over steps; a tick for every removal.

    Args:
        curves: by `NORM_FREE` and, if there is one, `CONTROL`: for every step its number, its `loss` and, where it was
            measured, its `validation_loss`, as `metrics.jsonl` has them.
        removals: made so far.
        loss_original: on the validation text, before training.
        form: what is drawn for.
    """
    styles = label_styles(list(curves), CONTROL)
    dotted = {"color": canvas.FAINT, "linewidth": 1.0, "linestyle": ":"}
    handles = {**canvas.line_handles(styles, 20), ORIGINAL: Line2D([], [], **dotted)}
    kinds = list(dict.fromkeys(one.target for one in removals))
    # other colours than that of the curve they are about
    looks = dict(zip(kinds, list(label_styles([NORM_FREE, *kinds]).values())[1:], strict=True))
    tick = {"linewidth": 0, "marker": "|", "markersize": 9, "markeredgewidth": 1.4}
    handles |= {KINDS[kind]: Line2D([], [], color=looks[kind].color, **tick) for kind in kinds}
    figure, (ax,) = canvas.panels(1, 1, 4.2, form.width, legend=handles if form.legend else None)
    legend = {**styles, ORIGINAL: _DOTTED} | {KINDS[kind]: look for kind, look in looks.items()}
    drawing = Drawing(figure, ("label", "training step", "loss (nats per token)"), legend=legend)
    for label, lines in curves.items():
        _draw(drawing, ax, label, lines, styles[label])
    drawing.add(ax, ORIGINAL, [ax.axhline(loss_original, **dotted)], [0], [loss_original])
    for kind in kinds:
        steps = [one.step for one in removals if one.target == kind]
        # ticks of the data's own axis below, of the figure's above: they never cover the curves
        ticks = ax.vlines(steps, 0.94, 1.0, transform=ax.get_xaxis_transform(), color=looks[kind].color, linewidth=1.1)
        drawing.artists[KINDS[kind]] = [ticks]
    canvas.label_axes(
        ax,
        "training step",
        "Loss (nats per token)",
        "validation marked, training faint; ticks above: a removal, by what went",
    )
    return drawing


def _draw(drawing: Drawing, ax: Axes, label: str, lines: Sequence[Mapping[str, Any]], style: SchemeStyle) -> None:
    artists: list[Artist] = []
    finite = [(line["step"], line["loss"]) for line in lines if np.isfinite(np.float64(line["loss"]))]
    if len(finite) >= _SMOOTHED_STEPS:
        steps, losses = np.array(finite, dtype=float).T
        smooth = moving_average(losses, _SMOOTHED_STEPS)
        artists += ax.plot(steps, smooth, color=style.color, linewidth=0.9, alpha=0.4)
    measured = [(line["step"], line["validation_loss"]) for line in lines if line.get("validation_loss") is not None]
    x, y = np.array(measured, dtype=float).reshape(-1, 2).T
    artists += ax.plot(x, y, **canvas.line_options(style, len(x)))
    drawing.add(ax, label, artists, x, y)
