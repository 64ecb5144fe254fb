"""`mixln generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mixln.chosen_device import on_device
from mixln.commands.start import announce_models
from mixln.signatures import checked_arguments


@checked_arguments
@on_device
def generate(
    model: Annotated[str | Path, {"as": str}],
    prompt: str,
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> str:
    """Continue a text with a trained model.

    Example:
        mixln generate runs/train/model "The module" --max-new-tokens 100

    Args:
        model: A Hugging Face folder, or a name on the hub.
        prompt: The text to continue.
        max_new_tokens: Tokens to generate at most.
        temperature: The temperature of the sampling. At 0 the likeliest token is always taken.
        top_p: Sample from the likeliest tokens whose probabilities add up to this.
        seed: The seed of the sampling.
        device: Such as cpu, cuda or cuda:1. Default: the GPU, if any.
        progress: Print the text as it comes.

    Returns:
        The text and its continuation.

    Raises:
        InputError: the model cannot be opened, or a number is out of its range.
    """
    del device  # `on_device` has chosen it
    announce_models(model)
    from mixln.models.generate import generate_text

    def say(piece: str) -> None:
        print(piece, end="", flush=True)

    continued = generate_text(
        str(model),
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        say=say if progress else None,
    )
    if progress:
        print()
    return continued
