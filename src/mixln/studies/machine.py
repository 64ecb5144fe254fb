"""The machine that something was measured on."""

from __future__ import annotations

import platform

import torch


def describe_machine() -> str:
    """Return processor, threads and the versions that decide speed and rounding."""
    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    else:
        name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
        processor = f"{name}, {torch.get_num_threads()} threads"
    return f"{processor}; PyTorch {torch.__version__}, Python {platform.python_version()}"
