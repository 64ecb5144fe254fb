"""Where a process computes."""

from __future__ import annotations

import os

import torch


def default_device() -> torch.device:
    """Return this process's GPU (of those that torchrun's LOCAL_RANK numbers), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def num_processes() -> int:
    """Return how many processes torchrun has started together with this one; 1: it is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this process is alone, or the first of those that torchrun has started: the one that prints."""
    return os.environ.get("RANK", "0") == "0"
