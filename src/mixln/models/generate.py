"""Text from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer, set_seed

from mixln.announce import announce
from mixln.device import default_device, describe_device
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
    say: Callable[[str], object] | None = None,
) -> str:
    """Return `text` and its continuation by the model of a Hugging Face folder or hub name.

    Generation ends at the end-of-text token, after `max_new_tokens`, or where the model's context is full
    (`max_position_embeddings` of its config): it was not trained on longer texts. The last is announced.

    Args:
        name_or_path: the model.
        text: what to continue, as the tokenizer begins a text; if empty, the model starts from that beginning alone,
            or from its end-of-text token.
        max_new_tokens: tokens to generate at most.
        temperature: logits are divided by it; 0 takes the likeliest token each time.
        top_p: samples from the smallest set of likeliest tokens with this total probability.
        seed: of the sampling.
        say: told the text in pieces, as they come.

    Raises:
        InputError: a number is out of its range, the checkpoint cannot be opened, a weight is no number, or `text`
            alone fills the model's context.
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
    room = _room(model, ids)
    input_ids = torch.tensor([ids], device=default_device())
    announce(("device", describe_device(input_ids.device)), ("precision", str(model.dtype).removeprefix("torch.")))
    set_seed(seed)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    )
    # to the type checker a PreTrainedModel can neither move nor generate
    generator: Any = model
    most = max_new_tokens if room is None else min(max_new_tokens, room)
    what = f"a {type(model).__name__} cannot continue a text of {len(ids)} tokens by {most}"
    with naming_failures(what, "Give a shorter text or a smaller `max_new_tokens`"):
        output = generator.to(input_ids.device).generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=most,
            pad_token_id=padding_token(model, tokenizer),
            streamer=None if say is None else _Pieces(tokenizer, say),
            **sampling,
        )
    if most < max_new_tokens and output.shape[1] == len(ids) + most:
        announce(("stopped", f"after {most} new tokens, where the model's context of {len(ids) + most} tokens is full"))
    continued = tokenizer.decode(output[0], skip_special_tokens=True)
    assert isinstance(continued, str)
    return continued


def _room(model: PreTrainedModel, ids: list[int]) -> int | None:
    """Return how many tokens the model's context has room for behind these; None: its config names no limit.

    Raises:
        InputError: there is no room.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int) or context < 1:
        return None
    if len(ids) >= context:
        raise InputError(
            f"the text has {len(ids)} tokens, and the model's context of {context} (max_position_embeddings in its "
            "config.json) has no room for another one. Give a shorter text"
        )
    return context - len(ids)


class _Pieces(TextStreamer):
    """Tells a function the text, prompt and all, as soon as no further token can change it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)  # pyright: ignore[reportArgumentType]
        self._say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Tell a piece."""
        del stream_end
        if text:
            self._say(text)
