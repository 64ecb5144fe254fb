"""How options were written before, and which contradict each other."""

from __future__ import annotations

from collections.abc import Collection

OLD_NAMES: dict[str, dict[str, str]] = {
    "": {
        "--corpus": "--text",
        "--validation-corpus": "--validation-text",
        "--window": "--sequence-length",
        "--dtype": "--precision",
    },
    "diagnose": {"--layers": "--stack"},
    "prune": {"--healing.validation-corpus": "--healing.validation-text"},
    "schemes": {"--layers": "--num-layers"},
}
"""By the name of a command, and for all: options as they were written before, and as they are now.

The old ones work until the next version, with a warning. A name counts where the command has no option of that name
now, but has the new one.
"""

CONTRADICTIONS: dict[str, list[tuple[str, str, str]]] = {
    "": [
        ("--tokens", "--steps", "both say how long to train"),
        ("--device", "--device-map", "a device map chooses the devices"),
        ("--tokenizer", "--data.vocab-size", "a tokenizer that is given has its vocabulary"),
        ("--tokenizer", "--data.tokenizer-training-characters", "a tokenizer that is given is not trained"),
    ],
    "compare": [
        ("--seeds", "--seed", "the first is a list of seeds, the second one seed"),
        ("--learning-rates", "--learning-rate", "the first is a grid of rates, the second one rate"),
    ],
    "convert": [
        ("--to", "--placement", "--to exports a model, which has its placement in config.json"),
        ("--to", "--norm-type", "--to exports a model, which has its placement in config.json"),
        ("--to", "--post-num", "--to exports a model, which has its placement in config.json"),
        ("--placement", "--norm-type", "both say how the norms are placed"),
        ("--placement", "--post-num", "a placement has the number in it, as mix(post_layers=2)"),
    ],
    "prune": [
        ("--layers", "--drop", "the first names the layers, the second has them chosen"),
        ("--layers", "--by", "--layers names the layers, and nothing is chosen"),
        ("--layers", "--any", "--layers names the layers, and nothing is chosen"),
        ("--layers", "--consecutive", "--layers names the layers, and nothing is chosen"),
        ("--any", "--consecutive", "the first lets any layers go, the second neighbours alone"),
    ],
    "schemes": [("--figures", "placement", "--figures draws every scheme and modifier")],
}
"""By the name of a command, and for all: two that exclude each other, and why."""


def new_name(command: str, option: str, known: Collection[str]) -> str | None:
    """Return how an option is written now that a command had before; None: it had none of that name."""
    found = {**OLD_NAMES[""], **OLD_NAMES.get(command, {})}.get(option)
    return found if found in known else None


def contradiction(command: str, given: Collection[str]) -> str | None:
    """Return what to say of two options that contradict each other; None: no two of those given do."""
    for one, other, reason in [*CONTRADICTIONS[""], *CONTRADICTIONS.get(command, ())]:
        if one in given and other in given:
            return f"{one} and {other} contradict each other: {reason}. Give one of them"
    return None
