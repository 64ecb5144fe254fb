"""What `mixln estimate` says beforehand of what is measured."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

from benchmarks.contenders import MIXLN
from benchmarks.settings import Settings
from mixln.estimation import DEVICES, Estimate, count_parameters, estimate
from mixln.tasks import Recipe

_LOGIT_BYTES = 14
"""Of a loss that is computed on all logits at once: bfloat16, float32, its gradient, and their copies."""

_CONTEXT_BYTES = 2**30
"""What a process holds of a GPU beside tensors, about."""

_MARGIN = 1.1


@dataclass(frozen=True)
class Prediction:
    """What is predicted of a contender's run.

    Attributes:
        step_seconds: of an optimiser step.
        peak_bytes: of tensors, on each device.
        utilization: share of its peaks that the device is taken to reach.
    """

    step_seconds: float
    peak_bytes: float
    utilization: float


def device_in_table(name: str) -> str | None:
    """Return the name that `mixln estimate` has for a GPU; None: it does not know it.

    >>> device_in_table("NVIDIA GeForce RTX 4090"), device_in_table("NVIDIA A100-SXM4-40GB")
    ('rtx4090', 'a100-40gb')
    """
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    # every word of the table's name, so that 40 GB are told from 80; the longest name is the most precise
    known = [known for known in DEVICES if all(word in letters for word in known.split("-"))]
    return max(known, key=len, default=None)


def predict(settings: Settings, device: str | None) -> Prediction | None:
    """Return what is predicted of mixln's run; None: the device is not known.

    Args:
        settings: of the run.
        device: as `mixln estimate` names it.
    """
    if device is None:
        return None
    found = _estimate(settings, device)
    return Prediction(found.time.step_seconds, found.chosen.memory.total, found.device.utilization)


def needed_bytes(settings: Settings, contender: str) -> float:
    """Return what a contender needs of the GPU, about: to decide how many can be there at once, with a margin."""
    # the device plays no part in what a model's tensors take
    tensors = _estimate(settings, next(iter(DEVICES))).chosen.memory.total
    if contender != MIXLN:
        tokens = settings.micro_batch_size * settings.recipe().data.sequence_length
        tensors += _LOGIT_BYTES * tokens * settings.vocabulary
    return _MARGIN * tensors + _CONTEXT_BYTES


@cache
def parameters_of(settings: Settings) -> int:
    """Return the parameters of the model."""
    return count_parameters(_recipe(settings)).total


@cache
def _estimate(settings: Settings, device: str) -> Estimate:
    return estimate(_recipe(settings), device, settings.processes)


def _recipe(settings: Settings) -> Recipe:
    """The recipe with the vocabulary of the trained tokenizer, whose folder has a name of its own."""
    recipe = settings.recipe()
    return replace(recipe, data=replace(recipe.data, tokenizer=None, vocab_size=settings.vocabulary))
