"""What is run to measure a model, whatever it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mixln.measure.batches import ModelBatch
from mixln.measure.performance import Performance


@dataclass(frozen=True)
class Measured:
    """What is run to measure a model.

    Attributes:
        model: what is run: the model, or its encoder where its decoder would need a text of its own.
        batches: texts or images.
        performance: what a change costs: of a causal language model and of a classifier of images the loss, of any
            other model the pooled embedding's turn.
        stack: the name of the list of blocks in what is run; None: it is to be found.
        encoder: the name of the encoder in the model; empty: the model itself is run.
        notes: what was left out of the texts or images.
    """

    model: nn.Module
    batches: list[ModelBatch]
    performance: Performance
    stack: str | None
    encoder: str = ""
    notes: Sequence[str] = ()
