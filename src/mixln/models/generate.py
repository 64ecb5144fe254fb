"""Text from a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import set_seed

from mixln.device import default_device
from mixln.errors import InputError
from mixln.models.encoding import PromptEncoder, padding_token, require_embedded
from mixln.models.finite import require_finite_parameters
from mixln.models.foreign import naming_failures
from mixln.models.load import load_causal_lm


def generate_text(
    name_or_path: str,
    text: str,
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> str:
    """Return `text` and its continuation by the model of a Hugging Face folder or hub name.

    Args:
        name_or_path: the model.
        text: what to continue, as the tokenizer begins a text; if empty, the model starts from that beginning alone,
            or from its end-of-text token.
        max_new_tokens: generation ends after so many tokens, or at the end-of-text token.
        temperature: logits are divided by it; 0 takes the likeliest token each time.
        top_p: samples from the smallest set of likeliest tokens with this total probability.
        seed: of the sampling.

    Raises:
        InputError: a number is out of its range, the checkpoint cannot be opened, or a weight is no number.
    """
    if max_new_tokens < 1:
        raise InputError(f"`max_new_tokens` must be at least 1, not {max_new_tokens}")
    if not 0 <= temperature < math.inf:
        raise InputError(f"`temperature` must not be negative or infinite, but is {temperature}")
    if not 0 < top_p <= 1:
        raise InputError(f"`top_p` must be in (0, 1], not {top_p}")
    if 0 < temperature < 1e-3:
        raise InputError(f"`temperature` must be 0 or at least 0.001, not {temperature}")
    if not 0 <= seed < 2**32:
        raise InputError(f"`seed` must be in [0, 2^32), not {seed}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("the text is not valid Unicode: give it in the terminal's encoding")
    model, tokenizer = load_causal_lm(name_or_path)
    require_finite_parameters(model)
    ids = PromptEncoder(tokenizer).encode(text)
    if not ids:
        raise InputError("the text is empty, and this tokenizer has no token to start from: give some text")
    require_embedded(ids, model, tokenizer)
    input_ids = torch.tensor([ids], device=default_device())
    set_seed(seed)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    )
    # to the type checker a PreTrainedModel can neither move nor generate
    generator: Any = model
    what = f"a {type(model).__name__} cannot continue a text of {len(ids)} tokens by {max_new_tokens}"
    with naming_failures(what, "Give a shorter text or a smaller `max_new_tokens`"):
        output = generator.to(input_ids.device).generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens,
            pad_token_id=padding_token(model, tokenizer),
            **sampling,
        )
    continued = tokenizer.decode(output[0], skip_special_tokens=True)
    assert isinstance(continued, str)
    return continued
