"""What a training run needs before it is started: parameters, operations, memory, time and cost.

Everything but the parameter count is a model of the engine, not a measurement. Its assumptions are part of the result,
and `benchmarks/estimate_error.py` measures how far off it is.
"""

from mixln.training.estimate.communication import Communication, count_communication
from mixln.training.estimate.devices import DEVICES, Device, device_names, find_device
from mixln.training.estimate.measure import measure_cpu
from mixln.training.estimate.memory import MemoryUse, ShardingPlan, memory_use
from mixln.training.estimate.operations import Operations, count_operations
from mixln.training.estimate.parameters import ParameterCount, count_parameters
from mixln.training.estimate.run import Estimate, PlanEstimate, TimeEstimate, estimate
from mixln.training.estimate.shape import ModelShape
from mixln.training.estimate.tables import print_estimate
from mixln.training.estimate.traffic import Traffic, count_traffic

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
