"""Where a process computes."""

from __future__ import annotations

import os

import torch


def default_device() -> torch.device:
    """Return this process's GPU (of those that torchrun's LOCAL_RANK numbers), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
