"""Whether a classifier of images has learned to tell classes apart: it stands beside what knows their frequencies."""

from __future__ import annotations

from collections.abc import Iterator

from mixln.measure.against_classes import AgainstClasses
from mixln.measure.performance import ClassificationLoss, Performance
from mixln.report.diagnosis import CLASS_FREQUENCIES, OVER_CLASS_FREQUENCIES, OVER_MOST_FREQUENT_CLASS, ModelDiagnosis
from mixln.report.series import TableSpec
from mixln.studies.measuring import Found, Observed, series_of

_LOSS, _ACCURACY = "nats per image", "share of images"


class _ClassFrequencies(Observed):
    name = "class_frequencies"
    rank = 5
    measure = AgainstClasses
    needs_performance = True
    takes_many_passes = True
    decides_verdicts = True
    tables = (
        TableSpec(
            "What the model must beat",
            "Class frequencies: the entropy of the measured images' own classes, below which the loss of no predictor "
            "can be that does not look at the image. Most frequent class: the accuracy of always naming it.",
            ["predictor", "number", "value"],
            {
                "classification_loss": "loss, nats per image",
                CLASS_FREQUENCIES: "loss, nats per image",
                "classification_accuracy": "accuracy",
                "most_frequent_class": "accuracy",
            },
        ),
    )

    def is_about(self, performance: Performance | None) -> bool:
        return isinstance(performance, ClassificationLoss)

    def read(self, measure: AgainstClasses) -> Found:
        found = measure.found()
        return Found(
            [
                series_of("classification_loss", "model", _LOSS, found.loss, ["the model"]),
                series_of(CLASS_FREQUENCIES, "model", _LOSS, found.class_frequencies, ["class frequencies"]),
                series_of(OVER_CLASS_FREQUENCIES, "model", _LOSS, found.over_class_frequencies),
                series_of("classification_accuracy", "model", _ACCURACY, found.accuracy, ["the model"]),
                series_of(
                    "most_frequent_class", "model", _ACCURACY, found.most_frequent_class, ["most frequent class"]
                ),
                series_of(OVER_MOST_FREQUENT_CLASS, "model", _ACCURACY, found.over_most_frequent_class),
            ]
        )

    def sentences(self, model: ModelDiagnosis) -> Iterator[str]:
        if OVER_CLASS_FREQUENCIES not in model.series:
            return
        of = {name: one.values[0] for name, one in model.series.items() if one.axis == "model"}
        over = model.series[OVER_MOST_FREQUENT_CLASS].estimates[0].format("+.1%")
        right = (
            f"it is right on {of['classification_accuracy']:.1%} of the images, where always naming the most frequent "
            f"class is right on {of['most_frequent_class']:.1%} ({over})"
        )
        loss, frequencies = of["classification_loss"], of[CLASS_FREQUENCIES]
        losses = f"{loss:.3f} nats per image, that of class frequencies {frequencies:.3f}"
        if model.has_learned:
            yield f"The model has learned to tell classes apart: {right}. Its loss is {losses}."
            return
        yield (
            f"The model has not learned to tell classes apart on these images: {right}, and its loss is {losses}. It "
            "is not clearly better by either, so what its layers do says nothing of what they could do, and no layer "
            "gets a verdict."
        )


ENTRY = _ClassFrequencies()
