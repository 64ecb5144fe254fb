"""What norms divide by, and what that does to a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mixln.measure.norm_scales import NormScales
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import Series, TableSpec
from mixln.studies.measuring import Found, Given, Observed, estimates_of, series_of

_ON_STREAM, _IN_BRANCH = "sigma_on_stream", "sigma_in_branch"


class _NormScales(Observed):
    name = "norm_scales"
    rank = 90
    measure = NormScales
    needs_sublayers = True
    tables = (
        TableSpec(
            "Norms",
            "sigma: standard deviation over channels, averaged over positions (Mix-LN, equations 3 to 7). A norm on "
            "the stream divides every gradient that passes it by sigma.",
            ["norm", "stands on the", "sigma of its input"],
            {_ON_STREAM: "stream", _IN_BRANCH: "branch"},
        ),
    )

    def build(self, given: Given) -> NormScales:
        return NormScales(given.execution.sublayers)

    def read(self, measure: NormScales) -> Found:
        scales = measure.scales()
        parts = {
            name: [one for one in scales if one.is_on_stream is (name == _ON_STREAM)] for name in self.tables[0].series
        }
        series = [
            Series(
                name,
                "norm",
                "units of the stream",
                [estimate for one in norms for estimate in estimates_of(one.sigma)],
                [f"layer {one.block}: {one.name}" for one in norms],
            )
            for name, norms in parts.items()
            if norms
        ]
        factor = measure.log_gradient_factor().through(lambda logarithm: logarithm / math.log(10))
        return Found([*series, series_of("log10_gradient_factor", "model", "powers of ten", factor)])

    def sentences(self, model: ModelDiagnosis) -> Iterator[str]:
        if "log10_gradient_factor" not in model.series:
            return
        if _ON_STREAM in model.series:
            yield (
                "There are norms on the residual stream (Post-LN). They multiply a gradient by about "
                f"10^{model.series['log10_gradient_factor'].values[0]:+.1f} (product of 1 / sigma)."
            )
        else:
            yield "There is no norm on the residual stream (Pre-LN), so no norm divides the gradient."


ENTRY = _NormScales()
