"""What the published training code calls its schemes, and the placements that compute the same function.

The scheme is an environment variable there (`NORM_TYPE`, with `POST_NUM` for Mix-LN) and not part of the checkpoint.
The names are those of the official code of Mix-LN, LayerNorm Scaling and GPAS, which are variants of one file.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from mixln.errors import InputError

if TYPE_CHECKING:
    import torch

PUBLISHED_NORM_TYPES: dict[str, str] = {
    "pre": "pre",
    "post": "post",
    "post_pre": "mix(post_layers={post_num})",
    # (2 * 32)^(1/4), a constant in most versions whatever the depth; others have 2.632 or (2L)^(1/4)
    "deeppost": "deepnorm(residual_scale=2.8284271247461903)",
    "sandwich": "sandwich",
    # these two change the initial weights only
    "scale_pre": "pre+scaled_init",
    "scale_post_pre": "mix(post_layers={post_num})+scaled_init",
    "lns": "lns",
    # from here on the GPAS code, where the factor of LNS is but the initial value of the norms' gain
    "pre_gpas": "pre+gpas",
    "lns_gpas": "pre+gpas",
    "sandwich_gpas": "sandwich+gpas",
    "deeppost_gpas": "deepnorm+gpas",
    "post_pre_gpas": "mix(post_layers={post_num})+gpas",
}
"""NORM_TYPE to the text form of the placement; `{post_num}` stands for POST_NUM."""

_GATE = re.compile(r"(model\.layers\.\d+\.)gpas_block\.gate")


def published_placement(norm_type: str, post_num: int | None = None) -> str:
    """Return the text form of the placement that the published code builds for a NORM_TYPE, in upper or lower case.

    Args:
        norm_type: one of PUBLISHED_NORM_TYPES.
        post_num: POST_NUM, the number of Post-LN layers, for those norm types that have some.

    Raises:
        InputError: there is no such norm type; or it lacks the number, or has no use for it, or the number is negative.
    """
    name = norm_type.lower()
    if name not in PUBLISHED_NORM_TYPES:
        from mixln.placement.words import unknown

        raise InputError(f"{unknown('`norm_type`', name, PUBLISHED_NORM_TYPES)}. For others, state the `placement`")
    text = PUBLISHED_NORM_TYPES[name]
    takes_number = "{post_num}" in text
    if takes_number and post_num is None:
        raise InputError(f"`norm_type={name}` needs `post_num`, the POST_NUM of the training script (its default is 1)")
    if not takes_number and post_num is not None:
        raise InputError(f"`norm_type={name}` takes no number of Post-LN layers: leave `post_num` out")
    if post_num is not None and post_num < 0:
        raise InputError(f"`post_num` must not be negative, but is {post_num}")
    return text.format(post_num=post_num)


def rename_published_gates(state: dict[str, torch.Tensor], expected: Collection[str]) -> None:
    """Rename the gates of the GPAS code, one number per layer, to the names that are expected, if they are."""
    for name in list(state):
        match = _GATE.fullmatch(name)
        own = f"{match[1]}activation_gate.weight" if match else None
        if own in expected and own not in state and state[name].numel() == 1:
            assert own is not None
            state[own] = state.pop(name).reshape(1)
