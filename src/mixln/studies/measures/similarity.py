"""How far layers turn the residual stream: angular distance of all runs, block influence."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mixln.measure.estimates import Estimates
from mixln.measure.similarity import Similarity
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import ColumnSpec, FigureSpec
from mixln.studies.measuring import Found, Observed, series_of

_RUN_SHARE = 6
"""The run of layers whose angular distance is named is L / this long."""


class _Similarity(Observed):
    name = "similarity"
    rank = 50
    measure = Similarity
    judges_layers = True
    figures = (
        FigureSpec(
            "angular_distance",
            "Angular distance between layers",
            "d(l, n) = arccos(cos(x_l, x_{l+n})) / π, where x_l is the input of block l, averaged over positions: how "
            "far the n blocks from l on turn the residual stream (Gromov et al. 2024).",
            "Dark cells are runs of layers that hardly turn it: candidates for removal together. The bottom row "
            "(n = 1) shows what each single layer does. Panels share one scale unless one of them would be dark in it.",
            "triangles",
            {"angular_distance": ""},
        ),
        FigureSpec(
            "block_influence",
            "Block influence",
            "BI(l) = 1 - cos(x_l, x_{l+1}), averaged over positions (ShortGPT: Men et al. 2024).",
            "Layers with low bars hardly change their input. Only removal decides: a layer can turn the "
            "stream little and be needed.",
            "bars",
            {"block_influence": ""},
        ),
    )
    columns = (ColumnSpec("block influence", "block_influence", table="layers"),)

    def read(self, measure: Similarity) -> Found:
        distances = measure.angular_distance()
        number = len(distances.value)
        value, low, high = (
            torch.cat([part[n, : number - n] for n in range(number)])
            for part in (distances.value, distances.low, distances.high)
        )
        runs = Estimates(value, low, high, distances.num_documents)
        return Found(
            [
                series_of("block_influence", "layer", "1 - cosine", measure.block_influence()),
                series_of("angular_distance", "run", "share of a half turn", runs),
            ]
        )

    def sentences(self, model: ModelDiagnosis) -> Iterator[str]:
        if "angular_distance" not in model.series:
            return
        length = max(1, model.num_layers // _RUN_SHARE)
        distances = model.series["angular_distance"].triangle()[length - 1]
        first = min(range(len(distances)), key=distances.__getitem__) + 1
        which, among = (
            (f"The layer that turns the residual stream least is {first}", "layers")
            if length == 1
            else (
                f"The {length} consecutive layers that turn the residual stream least are {first} to "
                f"{first + length - 1}",
                "runs of that length",
            )
        )
        yield (
            f"{which}: angular distance {min(distances):.3f}; of all {among}, {min(distances):.3f} to "
            f"{max(distances):.3f}."
        )


ENTRY = _Similarity()
