"""What a training run needs before it is started: parameters, operations, memory, time and cost.

Everything but the parameter count is a model of the engine, not a measurement. Its assumptions are part of the result,
and `benchmarks/estimate_error.py` measures how far off it is.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.estimate.communication import Communication, count_communication
    from mixln.estimate.devices import DEVICES, Device, device_names, find_device
    from mixln.estimate.measure import measure_cpu
    from mixln.estimate.memory import MemoryUse, ShardingPlan, memory_use
    from mixln.estimate.operations import Operations, count_operations
    from mixln.estimate.parameters import ParameterCount, count_parameters
    from mixln.estimate.result import Estimate, PlanEstimate, TimeEstimate
    from mixln.estimate.run import estimate
    from mixln.estimate.shape import ModelShape
    from mixln.estimate.tables import print_estimate
    from mixln.estimate.traffic import Traffic, count_traffic
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "DEVICES",
    "Communication",
    "Device",
    "Estimate",
    "MemoryUse",
    "ModelShape",
    "Operations",
    "ParameterCount",
    "PlanEstimate",
    "ShardingPlan",
    "TimeEstimate",
    "Traffic",
    "count_communication",
    "count_operations",
    "count_parameters",
    "count_traffic",
    "device_names",
    "estimate",
    "find_device",
    "measure_cpu",
    "memory_use",
    "print_estimate",
]
