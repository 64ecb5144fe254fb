"""The validation loss of a language model, on however many processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from mixln.data import Batch, Rows, TrainingData
from mixln.measure import EvaluationLoss
from mixln.measure.forward import model_device
from mixln.models.encoding import IGNORED_TARGET, require_embedded
from mixln.models.finite import require_finite_parameters
from mixln.modes import autocast, evaluation_mode
from mixln.tasks.choice import choose_objective
from mixln.tasks.objective import CausalLanguageModelObjective, attention_of
from mixln.training.objective import WHOLE, Reduce, Share


class ValidationLoss(EvaluationLoss):
    """The validation loss of a run."""

    @property
    def numbers(self) -> Mapping[str, float]:
        """Return the mean as `validation_loss`."""
        return {"validation_loss": self.mean}

    def __str__(self) -> str:
        return f"validation loss {self.mean:.4f}, perplexity {self.perplexity:.2f}"


def validation_loss(
    model: PreTrainedModel, data: TrainingData, batch_size: int, autocast_dtype: torch.dtype | None = None
) -> EvaluationLoss:
    """Return total loss / total predicted tokens of any causal language model on the validation split.

    Args:
        model: on its device.
        data: whose validation split is used.
        batch_size: rows of a batch; has no influence on the result.
        autocast_dtype: autocast to this; None: the model's own precision.

    Raises:
        InputError: a weight is not finite, the model has no embedding of one of the data's tokens, or it has no
            next-token loss of rows so long.
    """
    require_finite_parameters(model)
    require_embedded([data.largest_token], model, data.tokenizer)
    rows = data.validation
    separate = not rows.cross_documents
    objective = choose_objective(model, rows.sequence_length, separate=separate, data=rows)(model)
    device = model_device(model)
    with evaluation_mode(objective), torch.no_grad(), autocast(device, autocast_dtype):
        return validate(objective, rows, device, batch_size)


def validate(
    objective: CausalLanguageModelObjective,
    rows: Rows,
    device: torch.device,
    batch_size: int,
    share: Share = WHOLE,
    reduce: Reduce = lambda total: total,
) -> ValidationLoss:
    """Return total loss / total predicted tokens over all validation rows, whatever the batch size.

    With the attention that a loaded model has. To be called in evaluation mode, without gradients.

    Args:
        objective: the objective.
        rows: the validation rows.
        device: that the model is on.
        batch_size: rows of a batch.
        share: the batches that this process takes.
        reduce: adds a tensor up over the processes.

    Raises:
        InputError: there is no predicted token.
    """
    total = torch.zeros(2, dtype=torch.float64)
    with attention_of(objective, "sdpa"):
        for batch in _own_batches(rows, batch_size, share):
            loss = objective.batch_loss(batch.to(device))
            total += torch.tensor([loss.item(), batch.num_predicted_tokens], dtype=torch.float64)
    loss, tokens = reduce(total).tolist()
    return ValidationLoss(loss, int(tokens))


def _own_batches(rows: Rows, batch_size: int, share: Share) -> list[Batch]:
    """Return this process's batches: as many as any other has, since sharded processes must all make every forward."""
    starts = list(range(0, len(rows), batch_size))
    padded = starts + [-1] * (-len(starts) % share.of_how_many)
    batches: list[Batch] = []
    for start in share.of(padded):
        batch = rows.batch(range(max(start, 0), min(max(start, 0) + batch_size, len(rows))))
        if start < 0:
            batch = replace(batch, targets=torch.full_like(batch.targets, IGNORED_TARGET))
        batches.append(batch)
    return batches
