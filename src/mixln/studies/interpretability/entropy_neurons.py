"""Entropy neurons of the last feed-forward, held at their means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mixln.interpret.entropy_neurons import entropy_neurons
from mixln.measure.batches import ModelBatch
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import Estimate, FigureSpec, Series, TableSpec
from mixln.studies.interpretability import Interpretability
from mixln.studies.measuring import Given, series_of
from mixln.studies.stages import Reported

_UNIT = "nats per token"


class _EntropyNeurons(Interpretability):
    name = "entropy_neurons"
    called = "entropy neurons"
    rank = 112
    figures = (
        FigureSpec(
            "entropy_neurons",
            "What the norms do to entropy neurons",
            "Change of the output's entropy when entropy neurons of the last feed-forward are held at their means: in "
            "all, and with the final norm's scale held. The largest output weights first; the last bar: all together.",
            "The difference between the two passes through the norm. Without norms they coincide.",
            "bars",
            {"entropy_change": "norm computed anew", "entropy_change_held": "norm held"},
            x="neuron, in the order of the table",
            y="Change of entropy, nats/token",
        ),
    )
    tables = (
        TableSpec(
            "Entropy neurons",
            "Change of the output's entropy, in nats per token, when the neuron is held at its mean.",
            ["neuron", "final norm's scale", "change of entropy"],
            {"entropy_change": "computed anew", "entropy_change_held": "held"},
        ),
    )

    def measured(self, given: Given, batches: Sequence[ModelBatch]) -> list[Series]:
        """The chosen neurons, and what holding each, and all together, does to entropy and loss."""
        twice = Reported(batches, self.called, given.report, passes=2)
        found = entropy_neurons(given.stack.model, twice, stack=given.stack.name)
        names = [f"neuron {index}" for index in found.neurons]
        chosen = {"neuron_weight_norm": found.weight_norm, "neuron_logit_variance": found.logit_variance}
        changes = {
            "entropy_change": found.entropy_change,
            "entropy_change_held": found.entropy_change_held,
            "loss_change": found.loss_change,
            "loss_change_held": found.loss_change_held,
        }
        return [
            series_of("entropy", "model", _UNIT, found.entropy),
            *(
                Series(name, "neuron", "", list(map(Estimate, values.tolist())), names)
                for name, values in chosen.items()
            ),
            *(series_of(name, "neuron", _UNIT, change, [*names, "all"]) for name, change in changes.items()),
        ]

    def sentences(self, model: ModelDiagnosis) -> Iterator[str]:
        if "entropy_change" not in model.series:
            return
        changes, held = (model.series[name].values for name in ("entropy_change", "entropy_change_held"))
        yield (
            f"The {len(changes) - 1} entropy neurons of the last feed-forward, held at their means, change the entropy "
            f"of the output by {changes[-1]:+.4f} nats per token, and by {held[-1]:+.4f} with the final norm's scale "
            "held."
        )


ENTRY = _EntropyNeurons()
