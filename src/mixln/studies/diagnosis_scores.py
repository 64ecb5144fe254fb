"""Performance drops by any score of a whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from mixln.depth.forward import evaluation_mode
from mixln.depth.pruning import without_blocks
from mixln.depth.stack import BlockStack
from mixln.report.diagnosis import ModelDiagnosis, Series
from mixln.studies.stages import Reported, ReportStage

Score = Callable[[nn.Module], float]
"""How good a model is; higher is better."""


def with_scores(
    diagnosis: ModelDiagnosis, stack: BlockStack, scores: Mapping[str, Score], report: ReportStage | None
) -> ModelDiagnosis:
    """The diagnosis with a series `removal_<name>` for each score: score of the whole model - score without layer l.

    Args:
        diagnosis: so far.
        stack: of the model.
        scores: by name; each is called once for the whole model and once without each layer.
        report: progress.

    Raises:
        InputError: the config of the model does not say how many layers there are.
    """
    series = {f"removal_{name}": _drops(stack, name, score, report) for name, score in scores.items()}
    return replace(diagnosis, series={**diagnosis.series, **series})


def _drops(stack: BlockStack, name: str, score: Score, report: ReportStage | None) -> Series:
    count = len(stack.layers)
    drops: list[float] = []
    with evaluation_mode(stack.model), torch.no_grad():
        whole = score(stack.model)
        for index in Reported(range(count), name, report):
            with without_blocks(stack, [index]):
                drops.append(whole - score(stack.model))
    return Series(f"removal_{name}", "layer", name, drops, [None] * count, [None] * count)
