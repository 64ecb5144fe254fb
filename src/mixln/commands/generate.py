"""`mixln generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mixln.signatures import checked_arguments


@checked_arguments
def generate(
    model: Annotated[str | Path, {"as": str}],
    text: str,
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> str:
    """Continue a text with a trained model.

    Example:
        mixln generate runs/train/model "The module" --max-new-tokens 100

    Args:
        model: Hugging Face folder, or name on the hub.
        text: what to continue.
        max_new_tokens: tokens to generate at most.
        temperature: 0: always the likeliest token.
        top_p: sample from the likeliest tokens of this total.
        seed: of the sampling.
        progress: print the text as it comes.

    Returns:
        The text and its continuation.

    Raises:
        InputError: the model cannot be opened, or a number is out of its range.
    """
    from mixln.announce import announce
    from mixln.sources import describe_model

    announce(("model", describe_model(str(model))))
    from mixln.models.generate import generate_text

    def say(piece: str) -> None:
        print(piece, end="", flush=True)

    continued = generate_text(
        str(model),
        text,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        say=say if progress else None,
    )
    if progress:
        print()
    return continued
