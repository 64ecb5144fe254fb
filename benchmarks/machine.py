"""What the measurements were made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from mixln.device import processor_capabilities, processor_name

_KIND = {"vendor": "vendor_id", "family": "cpu family", "model": "model", "stepping": "stepping"}
"""What is told of a processor's kind, and what /proc/cpuinfo calls it."""

_NOTABLE = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "neon", "bf16", "i8mm", "sve", "sve_bf16")
"""Capabilities that decide how fast matrices are multiplied."""

_PACKAGES = ("mixln", "torch", "transformers", "accelerate", "litgpt", "lightning", "numpy")


def describe_machine() -> dict[str, Any]:
    """Return the machine, the versions and the commit."""
    return {
        "processor": processor_name(),
        **_kind(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "capabilities": processor_capabilities(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "nice": os.nice(0),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def machine_line() -> str:
    """Return in one line what kind of machine this is."""
    found = describe_machine()
    kind = ", ".join(f"{name} {found[name]}" for name in _KIND if name in found)
    units = ", ".join(name for name in found["capabilities"] if name in _NOTABLE) or "none of note"
    return (
        f"{found['processor']} ({kind}; {units}), {found['cores']} cores, {found['memory_gib']} GiB, "
        f"PyTorch {found['versions']['torch']}"
    )


def _kind() -> dict[str, str]:
    """Maker, family, model and stepping of an x86 processor, or what Linux says of another's kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    first = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    values = {name.strip(): value.strip() for name, value in first.items()}
    return {name: values[field] for name, field in _KIND.items() if field in values}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
