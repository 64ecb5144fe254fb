"""Direct logit attribution of the next token against the likeliest other one, beside direct effects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mixln.interpret.attribution import LogitAttribution, attribute
from mixln.interpret.readout import read
from mixln.interpret.stream import find_stream
from mixln.measure.batches import ModelBatch
from mixln.measure.estimates import DocumentSums
from mixln.measure.forward import model_device
from mixln.models.encoding import IGNORED_TARGET
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import Estimate, FigureSpec, Series
from mixln.studies.interpretability import Interpretability
from mixln.studies.measuring import Given, series_of
from mixln.studies.stages import Reported


class _Attribution(Interpretability):
    name = "attribution"
    called = "direct logit attribution"
    rank = 110
    figures = (
        FigureSpec(
            "attribution",
            "What the norms do to direct logit attribution",
            "What each layer says for the next token against the likeliest other one: by direct logit attribution (the "
            "final norm's scale held), and by its direct effect (taken out of the final state, norm computed anew).",
            "Without norms the two lines coincide.",
            "lines",
            {"attribution_direct_effect": "norm computed anew", "attribution_contribution": "norm held"},
            x="layer (0: the embeddings)",
            y="Mean |effect|, logits",
        ),
    )

    def measured(self, given: Given, batches: Sequence[ModelBatch]) -> list[Series]:
        """At every counted token: the gap, mean |c| and |DE| by layer, and the largest error of the sum."""
        stack, device = given.stack, model_device(given.stack.model)
        stream = find_stream(stack.model, batches[0].rows(0, 1).arguments_on(device), stack.name)
        gap, sizes, error = DocumentSums(), DocumentSums(), 0.0
        for batch in Reported(batches, self.called, given.report):
            reading = read(stream, batch.arguments_on(device))
            assert batch.targets is not None
            counted = batch.targets != IGNORED_TARGET
            answers = batch.targets.clamp_min(0)
            scores = reading.logits.cpu().scatter(-1, answers[..., None], -math.inf)
            positions = torch.arange(answers.shape[1]).expand_as(answers)
            found = attribute(stream, reading, answers, scores.argmax(-1), positions)
            effect = _rows(found.direct_effect.abs().sum(-1), counted)
            gap.update(_rows(found.error.sum(-1), counted), effect, batch.documents)
            sizes.update(_rows(_by_layer(found), counted), counted.sum(1), batch.documents)
            error = max(error, found.sum_error[counted].max().item())
        layers, tokens = sizes.estimate(), [f"{int(sizes.num_tokens):,} tokens"]
        return [
            series_of("attribution_gap", "model", "share of the direct effects", gap.estimate(), tokens),
            series_of("attribution_contribution", "state", "logits", layers.row(0)),
            series_of("attribution_direct_effect", "state", "logits", layers.row(1)),
            Series("attribution_sum_error", "model", "logits", [Estimate(error)]),
        ]

    def sentences(self, model: ModelDiagnosis) -> Iterator[str]:
        if (gap := model.series.get("attribution_gap")) is not None and gap.labels:
            yield (
                f"Direct logit attribution is {gap.estimates[0].format('.1%')} off the direct effects of the "
                f"components ({gap.labels[0]}; 0 without norms)."
            )


def _by_layer(found: LogitAttribution) -> Tensor:
    """|c| and |DE| of the embedding and of each layer, (rows, tokens, 2, L + 1)."""
    both = torch.stack((found.contribution, found.direct_effect), -2)
    layers = both[..., 1:].unflatten(-1, (-1, 2)).sum(-1)
    return torch.cat((both[..., :1], layers), -1).abs()


def _rows(values: Tensor, counted: Tensor) -> Tensor:
    """Sums over each row's counted tokens."""
    return (values * counted.reshape(*counted.shape, *[1] * (values.ndim - 2))).sum(1)


ENTRY = _Attribution()
