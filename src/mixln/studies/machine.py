"""The machine that something was measured on."""

from __future__ import annotations

import platform

import torch

from mixln.plugins import loaded_plugins


def describe_machine() -> str:
    """Return processor, threads, the versions that decide speed and rounding, and the plugins that are loaded."""
    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    else:
        name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
        threads = torch.get_num_threads()
        processor = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
    plugins = "".join(f", plugin {plugin}" for plugin in loaded_plugins())
    return f"{processor}; PyTorch {torch.__version__}, Python {platform.python_version()}{plugins}"
