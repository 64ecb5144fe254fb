"""The words of a comparison that depend on what its models are. They stand in its results, which a page is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """How numbers and findings are called. The defaults are those of language models, as all were in older results.

    Attributes:
        unit: what training counts, in the plural: tokens, images.
        loss: the unit of the loss.
        mean: what the validation loss is.
        documents: what intervals of a run are over.
        learned: what a run has done that is clearly better than the constants.
        constant: the constant whose loss it must beat.
        otherwise: how else a run counts as better than the constants, behind the rule of the loss; empty: in no way.
        advice: what to do with runs that have not.
        column: of frames, that says whether a run has.
        counted: what the column of the unit counts.
        has_perplexity: whether the exponential of the loss is shown.
    """

    unit: str = "tokens"
    loss: str = "nats per token"
    mean: str = "total loss / total predicted tokens"
    documents: str = "validation documents"
    learned: str = "learned word order"
    constant: str = "token frequencies"
    otherwise: str = ""
    advice: str = "Train longer, or with a smaller vocabulary."
    column: str = "has_learned_order"
    counted: str = "Tokens are predicted ones: without padding, and without the first of each document."
    has_perplexity: bool = True
