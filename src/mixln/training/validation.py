"""The validation loss of a run, on however many processes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from mixln.data import Batch, PackedDataset
from mixln.depth import EvaluationLoss
from mixln.depth.forward import IGNORED_TARGET, evaluation_mode
from mixln.training.compilation import uncompiled
from mixln.training.config import Recipe
from mixln.training.distributed import Processes, release_gathered_weights
from mixln.training.objective import CausalLanguageModelObjective, attention_of
from mixln.training.precision import autocast, resolve_precision


def validate(
    module: nn.Module,
    objective: CausalLanguageModelObjective,
    recipe: Recipe,
    rows: PackedDataset,
    processes: Processes,
) -> EvaluationLoss:
    """Return total loss / total predicted tokens over all validation rows, whatever the batch size, dropout off.

    Uncompiled and with the attention that a loaded model has, so that anyone who opens the saved model gets the same.

    Args:
        module: the objective, or DDP's wrapper around it.
        objective: the objective.
        recipe: for batch size and precision.
        rows: the validation rows.
        processes: each takes every n-th batch.

    Raises:
        InputError: there is no predicted token.
    """
    device = processes.device
    total = torch.zeros(2, dtype=torch.float64)
    with (
        evaluation_mode(module),
        torch.no_grad(),
        autocast(device, resolve_precision(recipe, device)),
        attention_of(objective, "sdpa"),
        uncompiled(),
    ):
        for batch in _own_batches(rows, recipe.evaluation_batch_size, processes):
            loss = objective.batch_loss(batch.to(device))
            total += torch.tensor([loss.item(), batch.num_predicted_tokens], dtype=torch.float64)
    release_gathered_weights(module)
    loss, tokens = processes.sum_over_data(total).tolist()
    return EvaluationLoss(loss, int(tokens))


def _own_batches(rows: PackedDataset, batch_size: int, processes: Processes) -> list[Batch]:
    """Return this process's batches: as many as any other has, since sharded processes must all make every forward."""
    starts = list(range(0, len(rows), batch_size))
    padded = starts + [-1] * (-len(starts) % processes.data_count)
    batches: list[Batch] = []
    for start in padded[processes.data_rank :: processes.data_count]:
        batch = rows.batch(range(max(start, 0), min(max(start, 0) + batch_size, len(rows))))
        if start < 0:
            batch = replace(batch, targets=torch.full_like(batch.targets, IGNORED_TARGET))
        batches.append(batch)
    return batches
