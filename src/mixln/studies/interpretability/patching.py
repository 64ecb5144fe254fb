"""Attribution patching against activation patching, on induction prompts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

import torch

from mixln.interpret.patching import patching_effects, stream_for
from mixln.interpret.prompts import induction_prompts
from mixln.measure.batches import ModelBatch
from mixln.measure.sublayers import SUBLAYERS
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import Axis, Estimate, FigureSpec, Series
from mixln.studies.interpretability import Interpretability
from mixln.studies.measuring import Given
from mixln.studies.stages import Steps

_SEGMENT = 8
"""Of the induction prompts."""


class _Patching(Interpretability):
    name = "patching"
    called = "patching"
    rank = 111
    figures = (
        FigureSpec(
            "patching",
            "What the norms do to attribution patching",
            "Attribution patching (a gradient) against activation patching on induction prompts, a point for each "
            "sublayer and position.",
            "The grey line is agreement. Without norms the points are near it.",
            "points",
            {"activation_patching": "", "attribution_patching": ""},
            x="activation patching, logits",
            y="attribution patching, logits",
        ),
    )

    def measured(self, given: Given, batches: Sequence[ModelBatch]) -> list[Series]:
        """Both effects, and how well one tells the other, prompt by prompt."""
        tokens = torch.cat(
            [batch.arguments["input_ids"][batch.counted_in(batch.arguments["input_ids"])] for batch in batches]
        )
        pairs = induction_prompts(tokens.tolist(), given.config.interpretability_prompts, segment=_SEGMENT)
        stream = stream_for(given.stack.model, pairs[0], given.stack.name)
        steps = Steps("patching", len(pairs) * len(SUBLAYERS) * len(given.stack.layers), given.report)
        found = [patching_effects(stream, pair, steps) for pair in pairs]

        activation = [value for one in found for value in one.activation.flatten().tolist()]
        attribution = [value for one in found for value in one.attribution.flatten().tolist()]

        def series(name: str, axis: Axis, unit: str, values: Iterable[float]) -> Series:
            return Series(name, axis, unit, list(map(Estimate, values)))

        return [
            series("patching_correlation", "prompt", "Pearson's r", (one.correlation for one in found)),
            series("patching_slope", "prompt", "slope", (one.slope for one in found)),
            series("patching_error", "prompt", "share of the effects", (one.error for one in found)),
            series("activation_patching", "component", "logits", activation),
            series("attribution_patching", "component", "logits", attribution),
        ]

    def sentences(self, model: ModelDiagnosis) -> Iterator[str]:
        if "patching_correlation" not in model.series:
            return
        correlations, slopes = (model.series[f"patching_{name}"].values for name in ("correlation", "slope"))
        number = len(correlations)
        spread = f", standard deviation {statistics.stdev(correlations):.2f}" if number > 1 else ""
        yield (
            f"Attribution patching correlates with activation patching at r = {statistics.mean(correlations):.2f} "
            f"(mean of {number} induction {'prompt' if number == 1 else 'prompts'}{spread}; slope "
            f"{statistics.mean(slopes):.2f})."
        )


ENTRY = _Patching()
