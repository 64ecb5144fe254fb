"""Sequence classifiers: a language model opened with a new head, and a padding token that ends no text.

transformers' classifiers read the last token of a row that is not the padding token, by its id. Where the end token
pads too, as in most tokenizers of language models, what is read is the token before it: the end is never seen.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mixln.errors import InputError
from mixln.models.load import load_config, open_with_new_head, other_kind
from mixln.models.model_class import classes_for, in_mapping, model_class_of

PAD_TOKEN = "<|pad|>"


def load_classifier(name_or_path: str, labels: int = 1, *, seed: int = 0) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return the sequence classifier of a Hugging Face folder or hub name, in float32, and which parameters are new.

    A language model gets a new head, drawn with the seed; a classifier keeps its own. Everything else must be there.

    Args:
        name_or_path: of the model.
        labels: scores of a text; a reward model has 1.
        seed: of the new head.

    Raises:
        InputError: there is no such model, it is no language model or classifier of texts with so many labels, or a
            parameter is missing.
    """
    config = load_config(name_or_path, "a classifier of texts")
    is_classifier = False
    if (kind := other_kind(config, name_or_path)) is not None:
        is_classifier = in_mapping(model_class_of(config, name_or_path), MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
        has_causal_form = classes_for(type(config), MODEL_FOR_CAUSAL_LM_MAPPING) and not config.is_encoder_decoder
        if not (is_classifier and has_causal_form):
            raise InputError(
                f"{name_or_path} is a {kind}: give a causal language model, or a classifier of texts made from one"
            )
        if config.num_labels != labels:
            raise InputError(
                f"{name_or_path} is a classifier with {config.num_labels} scores of a text, and {labels} "
                f"{'is' if labels == 1 else 'are'} wanted: give the language model instead"
            )
    if not classes_for(type(config), MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING):
        raise InputError(
            f"{name_or_path}: transformers has no classifier of texts for models of the type {config.model_type}. Give "
            "a model of another type"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_with_new_head(
            name_or_path,
            config,
            AutoModelForSequenceClassification,
            "a classifier of texts",
            {"num_labels": labels, "dtype": torch.float32},
            may_be_new=not is_classifier,
        )


def give_padding_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give a classifier and its tokenizer a padding token other than the end token, and let the model know it.

    One that is there is kept. A new one gets a row of its own in the embedding, unless that has rows to spare. It is
    never attended to or scored, so its row does not matter.

    Args:
        model: changed in place.
        tokenizer: changed in place.

    Returns:
        Whether the token is new.
    """
    is_new = tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id
    if is_new:
        name = PAD_TOKEN
        while name in tokenizer.get_vocab():
            name = f"<{name}>"
        tokenizer.add_special_tokens({"pad_token": name})
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    if pad >= embedding.num_embeddings:
        with torch.random.fork_rng():  # the new row is drawn; what is drawn after it stays the same
            torch.manual_seed(0)
            embedding = model.resize_token_embeddings(pad + 1, mean_resizing=False)
    # a model that pads with its end token has no gradient for it
    embedding.padding_idx = pad
    model.config.get_text_config().pad_token_id = pad
    return is_new
