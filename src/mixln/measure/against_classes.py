"""A classifier beside what knows nothing but how frequent each class is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mixln.measure.batches import ModelBatch
from mixln.measure.estimates import DocumentSums, Estimates
from mixln.measure.observation import Measure, Observation
from mixln.measure.performance import ClassificationError, class_logits, class_losses
from mixln.measure.sums import no_tokens_error
from mixln.models.encoding import IGNORED_TARGET


@dataclass(frozen=True)
class ClassComparison:
    """What a classifier and two constants are worth on the same images; each of shape (), with intervals over images.

    Attributes:
        loss: of the model, in nats per image.
        class_frequencies: the entropy of the measured images' own classes. A predictor that does not look at the image
            cannot have a lower loss on these images.
        over_class_frequencies: `loss` - `class_frequencies`, paired by image.
        accuracy: the share of images that the model is right on.
        most_frequent_class: the accuracy of always naming the most frequent class of the measured images.
        over_most_frequent_class: `accuracy` - `most_frequent_class`, paired by image.
    """

    loss: Estimates
    class_frequencies: Estimates
    over_class_frequencies: Estimates
    accuracy: Estimates
    most_frequent_class: Estimates
    over_most_frequent_class: Estimates


class AgainstClasses(Measure):
    """Compares a classifier with the best that does not look at the image, on the images that it is measured on."""

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._right: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []
        self._documents: list[torch.Tensor] = []

    def see_output(self, output: Any, batch: ModelBatch) -> None:
        """Keep what is known of every image with a class.

        Raises:
            InputError: the batch has no classes, or the output no logits.
        """
        logits, targets = class_logits(output, batch)
        known = (targets != IGNORED_TARGET).cpu()
        self._losses.append(class_losses(logits, targets)[known])
        self._right.append(1 - ClassificationError().on(output, batch).whole[known])
        self._targets.append(targets.cpu()[known])

    def update(self, observation: Observation) -> None:
        """Keep which images they are."""
        batch = observation.batch
        assert batch.targets is not None
        self._documents.append(batch.documents[batch.targets.cpu() != IGNORED_TARGET])

    def found(self) -> ClassComparison:
        """The comparison.

        Raises:
            InputError: no image has a class.
        """
        losses, right, targets, documents = map(torch.cat, (self._losses, self._right, self._targets, self._documents))
        if not len(targets):
            raise no_tokens_error()
        counts = targets.bincount()
        own = -(counts[targets].double() / len(targets)).log()
        most = (targets == counts.argmax()).double()

        def estimated(values: torch.Tensor) -> Estimates:
            sums = DocumentSums()
            sums.update_tokens(values, documents)
            return sums.estimate()

        return ClassComparison(
            *map(estimated, (losses, own, losses - own, right, most, right - most)),
        )
