"""The devices that an estimate can be made for, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from mixln.checked import Checked, NonNegativeFloat, PositiveFloat, Range
from mixln.errors import InputError
from mixln.placement.words import did_you_mean

CPU = "cpu"
"""The name of this machine's processor, which is measured, not looked up."""


@dataclass(frozen=True)
class Device(Checked):
    """One kind of device.

    Attributes:
        name: as the user types it.
        description: its full name.
        kind: a GPU or a processor, as the engine treats it.
        bfloat16_tflops: peak of dense bfloat16 matrix multiplication, in 10^12 floating-point operations per second
            (a multiplication and an addition are two).
        float32_tflops: the same in float32, without TF32, which the engine does not turn on.
        memory_gib: memory, in GiB.
        bandwidth: of the memory, in 10^9 bytes per second.
        interconnect: from one device to its neighbours in one machine, in 10^9 bytes per second in each direction.
        utilization: share of its peaks that a whole training step reaches (see `mixln.estimation.run`).
        utilization_reason: where that number comes from.
        price_per_hour: of one, in any currency; None: not known.
        library_bytes: memory outside of tensors, such as compiled code; 0: not known, left out.
    """

    name: str
    description: str
    kind: Literal["cuda", "cpu"]
    bfloat16_tflops: PositiveFloat
    float32_tflops: PositiveFloat
    memory_gib: PositiveFloat
    bandwidth: PositiveFloat
    interconnect: Annotated[float, Range(low=1e-6)]
    utilization: Annotated[float, Range(above=0, high=1)]
    utilization_reason: str
    price_per_hour: NonNegativeFloat | None = None
    library_bytes: NonNegativeFloat = 0.0


_A100 = "llm-foundry's published throughputs on A100 80 GB, 1.3B and 6.7B parameters (docs/reference/estimate.md)"
_H100 = "llm-foundry's published throughputs on H100 80 GB, 1.3B and 6.7B parameters (docs/reference/estimate.md)"
_LIKE_H100 = "assumed to be that of the H100: no measurement"
_ASSUMED = "assumed, between A100 and H100: no measurement"

# Peaks without sparsity, memory, bandwidth and interconnect (NVLink, else PCIe 4 x16; datasheets print the sum of both
# directions) from NVIDIA's datasheets and architecture white papers. Datasheets print
# GB and mean GiB. No prices: they differ between providers by more than a factor of two, and change every month.
_TABLE = (
    # NVIDIA A100 Tensor Core GPU datasheet (SXM)
    Device("a100-40gb", "NVIDIA A100 SXM 40 GB", "cuda", 312, 19.5, 40, 1555, 300, 0.68, _A100),
    Device("a100", "NVIDIA A100 SXM 80 GB", "cuda", 312, 19.5, 80, 2039, 300, 0.68, _A100),
    # NVIDIA H100 Tensor Core GPU datasheet (SXM): 1,979 with sparsity
    Device("h100", "NVIDIA H100 SXM 80 GB", "cuda", 989.5, 67, 80, 3350, 450, 0.53, _H100),
    # NVIDIA H200 Tensor Core GPU datasheet (SXM): 1,979 with sparsity
    Device("h200", "NVIDIA H200 SXM 141 GB", "cuda", 989.5, 67, 141, 4800, 450, 0.53, _LIKE_H100),
    # NVIDIA L40S datasheet: 733 with sparsity
    Device("l40s", "NVIDIA L40S 48 GB", "cuda", 362, 91.6, 48, 864, 32, 0.6, _ASSUMED),
    # NVIDIA Ada GPU architecture white paper, GeForce RTX 4090, bfloat16 with float32 accumulation
    Device("rtx4090", "NVIDIA GeForce RTX 4090 24 GB", "cuda", 165.2, 82.6, 24, 1008, 32, 0.6, _ASSUMED),
    # NVIDIA HGX B200 (1,000 W): datasheet and Blackwell architecture brief; 4,500 with sparsity
    Device("b200", "NVIDIA B200 180 GB", "cuda", 2250, 80, 180, 8000, 900, 0.53, _LIKE_H100),
)

DEVICES: dict[str, Device] = {device.name: device for device in _TABLE}
"""The devices that are looked up, by name."""


def device_names() -> list[str]:
    """Return the names of all devices, the measured one last."""
    return [*DEVICES, CPU]


def find_device(name: str) -> Device:
    """Return a device of the table.

    Raises:
        InputError: no device has this name.
    """
    if name in DEVICES:
        return DEVICES[name]
    known = device_names()
    raise InputError(f"`device={name}`: no such device.{did_you_mean(name, known)} Known: {', '.join(known)}")
