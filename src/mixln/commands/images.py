"""Options of commands that measure models on text or on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixln.announce import announce
from mixln.errors import InputError
from mixln.sources import check_images, describe_images

DEFAULT_TEXT = "python"
"""What models are measured on where nothing is named."""


def announce_images(images: Any, texts: object, text: str | Path, tokenizer: object) -> None:
    """Say which images are read, after making sure that nothing is given that goes with text.

    Raises:
        InputError: something is; or there are no such images, or they are a dataset of the hub, which does not answer,
            and the cache does not have it.
    """
    if texts is not None or str(text) != DEFAULT_TEXT:
        raise InputError("a model is measured on `images` or on `text`: leave out one of them")
    if tokenizer is not None:
        raise InputError("`tokenizer` goes with text: give `image_processor` with `images`")
    if not isinstance(images, str | Path):
        announce(("images", "given in Python"))
        return
    check_images(str(images))
    announce(("images", describe_images(str(images))))


def require_no_images(**options: object) -> None:
    """Make sure that nothing is given that goes with images, where there are none.

    Raises:
        InputError: something is.
    """
    if given := [name for name, value in options.items() if value is not None]:
        raise InputError(f"`{given[0]}` goes with `images`: give some")
