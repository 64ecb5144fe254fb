"""What the measurements were made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("mixln", "torch", "transformers", "accelerate", "litgpt", "lightning", "numpy")


def describe_machine() -> dict[str, Any]:
    """Return the machine, the versions and the commit."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "capabilities": sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "nice": os.nice(0),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


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
