"""The device and the processor that a process computes on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from mixln.chosen_device import chosen_device
from mixln.errors import InputError

if TYPE_CHECKING:
    import torch


def default_device() -> torch.device:
    """Return the device that was chosen (`mixln.chosen_device`); else this process's GPU, else the CPU.

    This process's GPU is the one of torchrun's LOCAL_RANK.

    Raises:
        InputError: the chosen device is not one of this machine.
    """
    import torch

    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    if (wanted := chosen_device()) is None:
        return torch.device(own)
    there = ["cpu", "cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if not torch.cuda.is_available():
        there = ["cpu"]
    if wanted not in there:
        raise InputError(f"`device={wanted}`: this machine has no such device. It has: {', '.join(there)}")
    return torch.device(own if wanted == "cuda" else wanted)


def num_processes() -> int:
    """Return how many processes torchrun has started, this one included; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the process that prints: the only one, or the first of those that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def describe_device(device: torch.device | None = None, count: int = 1) -> str:
    """Return in words what is computed on: the GPU's name, or the processor's with the number of threads.

    Args:
        device: where; None: the default device.
        count: number of processes, each with such a device.
    """
    import torch

    device = default_device() if device is None else device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{processor_name()}, {threads} {'thread' if threads == 1 else 'threads'}"
    return f"{device.type}, {name}" + (f", {count} processes" if count > 1 else "")


def processor_name() -> str:
    """Return the processor's name as its maker writes it, or its architecture if the name is not known."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    known = (*named, torch.cpu.get_capabilities().get("cpu_name"), platform.processor(), platform.machine())
    return next(str(name) for name in known if name)


def processor_capabilities() -> tuple[str, ...]:
    """Return the names of the processor's capabilities as PyTorch names them (`avx2`, `amx_bf16`), sorted."""
    import torch

    return tuple(sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True))
