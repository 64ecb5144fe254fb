"""The precision of a run: float32 weights, and bfloat16 where matrices are multiplied if that is faster here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mixln.device import processor_capabilities, processor_name
from mixln.training.config import WantedPrecision
from mixln.training.matrix_speed import bfloat16_speedup

PrecisionName = Literal["float32", "bfloat16"]

BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
"""Capabilities, in PyTorch's names, of processors that multiply bfloat16 themselves: Intel AMX, AVX-512, Arm, Arm SVE.

On others oneDNN emulates it by float32, which cannot be faster.
"""

LEAST_SPEEDUP = 1.1
"""bfloat16 has to be faster than float32 by this factor: it rounds more, so a draw goes to float32."""


@dataclass(frozen=True)
class Precision:
    """In which precision matrices are multiplied, and why: decided once, when a run begins.

    Attributes:
        name: float32, or bfloat16 (autocast; weights, gradients and optimiser state are float32 all the same).
        reason: a sentence.
        wanted: by the recipe.
        device: processor or GPU that it was decided on; empty: not known any more.
        bfloat16_units: those of `BFLOAT16_UNITS` that the processor has.
        speedup: time of the run's own products in float32 / under bfloat16 autocast; None: not measured.
    """

    name: PrecisionName
    reason: str
    wanted: WantedPrecision
    device: str = ""
    bfloat16_units: tuple[str, ...] = ()
    speedup: float | None = None

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype to autocast to, or None for float32 throughout."""
        return torch.bfloat16 if self.name == "bfloat16" else None

    def __str__(self) -> str:
        """The name with the reason."""
        return f"{self.name} ({self.reason})"


def decide_precision(wanted: WantedPrecision, device: torch.device, widths: tuple[int, int], vectors: int) -> Precision:
    """Return the precision that is wanted, or for `auto` bfloat16 where it is clearly faster.

    On a GPU it is, if the GPU has units for it (compute capability 8.0 or above). On a processor the run's own products
    are measured if it has such units (`BFLOAT16_UNITS`), and have to be more than `LEAST_SPEEDUP` times as fast. On
    any other kind of device: float32.

    Args:
        wanted: as in a recipe.
        device: that computes.
        widths: of the model's largest common matrices, (inputs, outputs).
        vectors: that go through each of them at once, on one device: the tokens of a micro-batch.
    """
    name = _device_name(device)
    units = tuple(unit for unit in BFLOAT16_UNITS if unit in processor_capabilities()) if device.type == "cpu" else ()
    if wanted != "auto":
        return Precision(wanted, "as the recipe says", wanted, name, units)
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bfloat16", f"{name} has units for bfloat16", wanted, name)
    if not units:
        reason = {
            "cuda": f"{name} has no units for bfloat16",
            "cpu": f"{name} has no units for bfloat16 (none of {', '.join(BFLOAT16_UNITS)})",
        }.get(device.type, f"bfloat16 has not been measured on devices of the kind {device.type}")
        return Precision("float32", reason, wanted, name)
    speedup = bfloat16_speedup(*widths, vectors)
    faster = speedup > LEAST_SPEEDUP
    reason = (
        f"on {name} with {', '.join(units)}, products of the run's shapes were {speedup:.2f} times as fast in bfloat16 "
        f"as in float32{'' if faster else f', but bfloat16 is used from {LEAST_SPEEDUP} times on'}"
    )
    return Precision("bfloat16" if faster else "float32", reason, wanted, name, units, speedup)


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return processor_name()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
