"""Sentences on what norms do to the tools of interpretability."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from mixln.report.diagnosis import (
    AttributionResult,
    EntropyNeuronsResult,
    InterpretabilityResult,
    PatchingResult,
)


def interpretability_sentences(found: InterpretabilityResult) -> list[str]:
    """One sentence for each measure that was taken."""
    return list(_sentences(found))


def _sentences(found: InterpretabilityResult) -> Iterator[str]:
    if found.attribution is not None:
        yield _attribution_sentence(found.attribution)
    if found.patching is not None:
        yield _patching_sentence(found.patching)
    if found.entropy_neurons is not None:
        yield _neurons_sentence(found.entropy_neurons)


def _attribution_sentence(found: AttributionResult) -> str:
    interval = "" if found.gap_low is None else f" [{found.gap_low:.1%}, {found.gap_high:.1%}]"
    return (
        f"Direct logit attribution is {found.gap:.1%}{interval} off the direct effects of the components "
        f"({found.tokens:,} tokens; 0 without norms)."
    )


def _patching_sentence(found: PatchingResult) -> str:
    number = len(found.correlation)
    spread = f", standard deviation {statistics.stdev(found.correlation):.2f}" if number > 1 else ""
    return (
        f"Attribution patching correlates with activation patching at r = {statistics.mean(found.correlation):.2f} "
        f"(mean of {number} induction {'prompt' if number == 1 else 'prompts'}{spread}; slope "
        f"{statistics.mean(found.slope):.2f})."
    )


def _neurons_sentence(found: EntropyNeuronsResult) -> str:
    return (
        f"The {len(found.neurons)} entropy neurons of the last feed-forward, held at their means, change the entropy "
        f"of the output by {found.entropy_change[-1]:+.4f} nats per token, and by "
        f"{found.entropy_change_held[-1]:+.4f} with the final norm's scale held."
    )
