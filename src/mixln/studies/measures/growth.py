"""How the residual stream grows with depth."""

from __future__ import annotations

from collections.abc import Iterator

from mixln.measure.growth import StreamGrowth
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import FigureSpec
from mixln.studies.measuring import Found, Observed, series_of


class _Growth(Observed):
    name = "growth"
    rank = 70
    measure = StreamGrowth
    figures = (
        FigureSpec(
            "variance",
            "Variance of the residual stream",
            "Variance over channels after each layer (0: the embeddings), averaged over positions; logarithmic.",
            "A steep rise means that later layers add less and less to a growing stream (the curse of depth).",
            "lines",
            {"variance": ""},
            x="after layer (0: the embeddings)",
            y="Variance over channels (log scale)",
            log=True,
        ),
    )

    def read(self, measure: StreamGrowth) -> Found:
        return Found(
            [
                series_of("variance", "state", "squared units of the stream", measure.variance()),
                series_of("rms", "state", "units of the stream", measure.rms()),
                series_of("norm", "state", "units of the stream", measure.norm()),
            ]
        )

    def sentences(self, model: ModelDiagnosis) -> Iterator[str]:
        if "variance" in model.series and (variance := model.series["variance"].values)[0] > 0:
            yield (
                f"The variance of the stream grows {_factor(variance[-1] / variance[0])}-fold from the input of "
                "layer 1 to "
                f"the output of layer {model.num_layers}."
            )


def _factor(factor: float) -> str:
    """Three digits that count, never as a power of ten."""
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.3g}"


ENTRY = _Growth()
