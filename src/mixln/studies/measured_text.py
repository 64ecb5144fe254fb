"""A model, or its encoder, and the text that it is measured on."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from torch import nn
from transformers import PreTrainedTokenizerBase

from mixln.measure.performance import EmbeddingTurn, LanguageModelLoss
from mixln.measure.row_limit import longest_row
from mixln.measure.texts import encoder_around, longest_window, text_batches, text_windows
from mixln.models.causal import is_causal_language_model
from mixln.models.encoding import padding_token, require_embedded
from mixln.models.inputs import require_input
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.measured import Measured


def measured_text(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    config: DiagnosisConfig,
    *,
    whole: bool = False,
) -> Measured:
    """Cut texts into what a model is run on.

    Args:
        model: a Hugging Face model.
        tokenizer: of the model.
        texts: one document each.
        config: how much of them, and in which pieces.
        whole: run the model even if its blocks lie in an encoder.

    Raises:
        InputError: the model takes images, or has no embedding of a token; or there is too little text.
    """
    require_input(model, "text")
    predicts_next = is_causal_language_model(model)
    window = longest_row(model, longest_window(tokenizer, getattr(model, "config", None), config.sequence_length))
    windows = text_windows(
        tokenizer, texts, window, config.max_tokens, config.max_documents, special_tokens=not predicts_next
    )
    require_embedded(chain.from_iterable(window.input_ids for window in windows), model, tokenizer)
    padding_id = padding_token(model, tokenizer)
    batches = text_batches(windows, config.batch_size, padding_id, predicts_next=predicts_next)
    part = None if whole else encoder_around(model, config.stack)
    encoder, name, stack = part or (model, "", config.stack)
    return Measured(encoder, batches, LanguageModelLoss() if predicts_next else EmbeddingTurn(), stack, name)
