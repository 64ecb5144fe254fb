"""Whether a language model has learned word order: its loss beside those of token frequencies and of token pairs."""

from __future__ import annotations

from collections.abc import Iterator

from mixln.measure.against_frequencies import AgainstFrequencies
from mixln.measure.performance import LanguageModelLoss, Performance
from mixln.report.diagnosis import OVER_TOKEN_FREQUENCIES, ModelDiagnosis
from mixln.report.series import TableSpec
from mixln.studies.measuring import Found, Observed, series_of

_LOSSES = {"model_loss": "the model", "token_frequencies": "token frequencies", "token_pairs": "token pairs"}


class _TokenFrequencies(Observed):
    name = "token_frequencies"
    rank = 5
    measure = AgainstFrequencies
    needs_performance = True
    takes_many_passes = True
    decides_verdicts = True
    tables = (
        TableSpec(
            "What the loss must beat",
            "Token frequencies: the entropy of the measured tokens' own frequencies, below which no predictor without "
            "context can be. Token pairs: which token follows which, each document by the counts of other documents.",
            ["loss of", "unit", "loss"],
            dict.fromkeys(_LOSSES, "nats per token"),
        ),
    )

    def is_about(self, performance: Performance | None) -> bool:
        return isinstance(performance, LanguageModelLoss)

    def read(self, measure: AgainstFrequencies) -> Found:
        found = measure.found()
        losses = zip(_LOSSES.items(), (found.model, found.token_frequencies, found.token_pairs), strict=True)
        unit = LanguageModelLoss.name
        series = [series_of(name, "model", unit, loss, [label]) for (name, label), loss in losses if loss is not None]
        return Found([*series, series_of(OVER_TOKEN_FREQUENCIES, "model", unit, found.over_token_frequencies)])

    def sentences(self, model: ModelDiagnosis) -> Iterator[str]:
        if OVER_TOKEN_FREQUENCIES not in model.series:
            return
        loss, frequencies = (model.series[name].values[0] for name in ("model_loss", "token_frequencies"))
        over = model.series[OVER_TOKEN_FREQUENCIES].estimates[0].format("+.3f")
        entropy = f"the entropy of the measured tokens' own frequencies, {frequencies:.3f}"
        if model.has_learned:
            pairs = model.series["token_pairs"].values[0] if "token_pairs" in model.series else frequencies
            # of little text their counts tell less than the frequencies of the very tokens
            bigrams = f" Token pairs alone have {pairs:.3f}." if pairs < frequencies else ""
            yield f"The model has learned word order: its loss, {loss:.3f}, is below {entropy} ({over}).{bigrams}"
            return
        yield (
            f"The model has not learned word order on this text: its loss, {loss:.3f} nats per token, is not clearly "
            f"below {entropy} ({over}), which a predictor without context can reach. What its layers do says nothing "
            "of what they could do, so no layer gets a verdict."
        )


ENTRY = _TokenFrequencies()
