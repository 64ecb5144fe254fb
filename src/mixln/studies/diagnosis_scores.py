"""Performance drops by any score of a whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from mixln.depth.estimates import ratio_estimates
from mixln.depth.forward import evaluation_mode
from mixln.depth.pruning import without_blocks
from mixln.depth.stack import BlockStack
from mixln.errors import InputError
from mixln.report.diagnosis import ModelDiagnosis
from mixln.studies.diagnosis_measures import with_series
from mixln.studies.stages import Reported, ReportStage

Score = Callable[[nn.Module], float | Sequence[float]]
"""How good a model is, higher is better: one number, or one for each item (question, document), in the same order each
time. If it has a `unit`, the report shows that."""


def with_scores(
    diagnosis: ModelDiagnosis, stack: BlockStack, scores: Mapping[str, Score], report: ReportStage | None
) -> ModelDiagnosis:
    """The diagnosis with two series for each score.

        score_<name>       S of the whole model
        removal_<name>     S of the whole model - S without layer l; positive means harm

    Of one number there are no intervals. Of numbers s_i for items i = 1 .. I, S is their mean, and both intervals are
    over items; that of the drop is of the mean of the I differences, so what all models find hard or easy is no noise
    in it.

    Args:
        diagnosis: so far.
        stack: of the model.
        scores: by name; each is called once for the whole model and once without each layer.
        report: progress.

    Raises:
        InputError: the config of the model does not say how many layers there are, or a score does not give as many
            numbers each time.
    """
    for name, score in scores.items():
        unit = getattr(score, "unit", name)
        with evaluation_mode(stack.model), torch.no_grad():
            whole = _items(score(stack.model))
            drops = [
                whole - _like(whole, _without(stack, index, score), name, index)
                for index in Reported(range(len(stack.layers)), name, report)
            ]
        items = torch.ones(len(whole), dtype=torch.float64)
        diagnosis = with_series(diagnosis, f"score_{name}", "model", unit, ratio_estimates(whole, items))
        harm = ratio_estimates(torch.stack(drops, dim=1), items)
        diagnosis = with_series(diagnosis, f"removal_{name}", "layer", unit, harm)
    return diagnosis


def _without(stack: BlockStack, index: int, score: Score) -> torch.Tensor:
    with without_blocks(stack, [index]):
        return _items(score(stack.model))


def _items(found: float | Sequence[float]) -> torch.Tensor:
    """(items,); one number is an item alone, which has no interval."""
    return torch.as_tensor(found, dtype=torch.float64).flatten().cpu()


def _like(whole: torch.Tensor, found: torch.Tensor, name: str, index: int) -> torch.Tensor:
    if len(whole) != len(found) or not len(whole):
        raise InputError(
            f"the score {name} gave {len(whole)} numbers for the whole model and {len(found)} without layer "
            f"{index + 1}: give one number, or one for each item, of the same items each time"
        )
    return found
