"""Whether a model that predicts the next token sees it."""

from __future__ import annotations

import torch
from torch import nn

from mixln.measure.batches import ModelBatch
from mixln.measure.comparison import nearly_equal
from mixln.measure.forward import autocast, call_model, evaluation_mode, model_device


def sees_what_follows(model: nn.Module, batch: ModelBatch, autocast_dtype: torch.dtype | None = None) -> bool:
    """Whether the logits of the first half of a row change with the tokens of the second half.

    Args:
        model: gives logits.
        batch: of text, as `input_ids`; its first row is run twice.
        autocast_dtype: autocast to this; None: the model's own precision.
    """
    arguments = batch.rows(0, 1).arguments_on(model_device(model))
    tokens = arguments["input_ids"]
    half = tokens.shape[1] // 2
    changed = tokens.clone()
    changed[:, half:] = tokens[:, :1]
    with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype):
        before, after = (
            call_model(model, {**arguments, "input_ids": ids}).logits[0, :half] for ids in (tokens, changed)
        )
    return half > 0 and not nearly_equal(before, after, autocast_dtype)
