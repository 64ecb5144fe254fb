"""What the benchmark runs on, asked in a process of its own, which gives the GPU's memory back."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.gpu.prediction import device_in_table
from benchmarks.matrix_peak import matrix_peak
from benchmarks.settings import Settings
from mixln.device import default_device, processor_name
from mixln.estimation.devices import CPU

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SECONDS = 0.5


def first_gpu() -> dict[str, str]:
    """Return the variables of a process that sees the first GPU of this one alone."""
    return {_VISIBLE: os.environ.get(_VISIBLE, "0").split(",")[0]}


def count_gpus() -> int:
    """Return the number of GPUs, without starting to use one."""
    return torch.cuda.device_count()


def describe_device(_: Connection, settings: Settings) -> dict[str, Any]:
    """Return the device with its free memory in bytes, what `mixln estimate` calls it, and its peak."""
    torch.set_num_threads(settings.threads)
    device = default_device()
    peak = matrix_peak(settings, device, _SECONDS)
    if device.type == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        found = {"name": processor_name(), "free_bytes": memory, "estimated_as": CPU}
    else:
        torch.cuda.empty_cache()
        name = torch.cuda.get_device_name(device)
        free, whole = torch.cuda.mem_get_info(device)
        found = {
            "name": name,
            "free_bytes": free,
            "memory_bytes": whole,
            "capability": torch.cuda.get_device_capability(device),
            "cuda": torch.version.cuda,
            "estimated_as": device_in_table(name),
        }
    return {"device": {"kind": device.type, **found}, "peak": peak}
