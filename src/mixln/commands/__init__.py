"""The subcommands of `mixln`: a module each, with a function of the same name, whose signature is the interface.

The same functions are the package's own: `mixln.train` and the command `mixln train` are one function, which returns a
result; the command prints it. See `mixln.commands.arguments` for how parameters become arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

COMMANDS = {
    "schemes": "list the schemes and modifiers, or show one",
    "compare": "train several schemes on the same data and seeds; table, figures, HTML report",
    "train": "train one model from a recipe",
    "diagnose": "which layers of a model earn their place; figures, HTML report",
    "finetune": "train a model further on prompts and answers",
    "reward": "train a reward model on preferred and rejected answers",
    "rlhf": "train policies against a reward, and compare them under one judge",
    "evaluate": "scores of models on tasks, beside the constants that they must beat",
    "prune": "remove layers from a model, and heal what is left",
    "remove-norm": "remove the norms of a trained model",
    "reproduce": "tables and figures of the papers, published and measured side by side",
    "estimate": "memory, time and cost of a run before it is started",
    "data": "work on training data before training",
    "data prepare": "tokenise a corpus into memory-mapped shards",
    "export": "a Hugging Face folder from a run's checkpoint",
    "generate": "text from a checkpoint",
    "convert": "import checkpoints of the published training code, export to stock classes",
}
"""What each is for, in the order of `mixln --help`. A name that others begin with is a group and runs nothing."""


def is_group(name: str) -> bool:
    """Return whether a command only has subcommands."""
    return any(other.startswith(f"{name} ") for other in COMMANDS)


def find_command(name: str) -> Callable[..., Any]:
    """Return the function of a command: `train` of `commands/train.py`, `prepare` of `commands/data.py`."""
    module, _, function = name.replace("-", "_").partition(" ")
    return getattr(importlib.import_module(f"mixln.commands.{module}"), function or module)
