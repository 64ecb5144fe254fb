"""Healing: training a pruned model on for a while, so that what is left takes over what was removed."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from mixln.data import PreparedData
from mixln.measure import EvaluationLoss
from mixln.measure.forward import model_device
from mixln.models.encoding import require_embedded
from mixln.models.finite import require_finite_parameters
from mixln.modes import autocast, evaluation_mode
from mixln.tasks.choice import next_token_objective
from mixln.tasks.fine_tuning import FineTuning
from mixln.tasks.healing_config import LowRankConfig
from mixln.tasks.recipe import TextTrainingConfig
from mixln.tasks.validation import validate
from mixln.training import Precision, ReportStep, TrainedModel, train


def heal(
    pruned: Path,
    config: TextTrainingConfig,
    data: PreparedData,
    folder: Path,
    *,
    low_rank: LowRankConfig | None = None,
    report_step: ReportStep | None = None,
    precision: Precision | None = None,
) -> TrainedModel:
    """Train a language model of any architecture on, on the training engine; what was interrupted is taken up.

    Args:
        pruned: a Hugging Face folder.
        config: of the run.
        data: in the tokens of that folder's tokenizer.
        folder: of the run: checkpoints, metrics, and in the end `model/`.
        low_rank: train low-rank updates only, merged in the end; None: all weights.
        report_step: progress.
        precision: decided already; None: as `train`.

    Raises:
        InputError: the folder is no language model, the data are in other tokens, or anything that `train` raises.
        TrainingInterrupted, TrainingDivergedError: as `train`.
    """
    return train(FineTuning(pruned, config, data, low_rank), folder, report_step, precision=precision)


def validation_loss(
    model: PreTrainedModel, data: PreparedData, batch_size: int, autocast_dtype: torch.dtype | None = None
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
    objective = next_token_objective(model, "sdpa", rows.sequence_length, separate=separate, data=rows)
    device = model_device(model)
    with evaluation_mode(objective), torch.no_grad(), autocast(device, autocast_dtype):
        return validate(objective, rows, device, batch_size)
