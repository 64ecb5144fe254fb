"""What a training run needs before it is started: parameters, operations, memory, time and cost.

Everything but the parameter count is a model of the engine, not a measurement. Its assumptions are part of the result,
and `benchmarks/estimate_error.py` measures how far off it is.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.estimate.devices import DEVICES as DEVICES
    from mixln.estimate.devices import find_device as find_device
    from mixln.estimate.memory import ShardingPlan as ShardingPlan
    from mixln.estimate.memory import memory_use as memory_use
    from mixln.estimate.operations import count_operations as count_operations
    from mixln.estimate.parameters import count_parameters as count_parameters
    from mixln.estimate.result import Estimate as Estimate
    from mixln.estimate.run import estimate as estimate
    from mixln.estimate.shape import ModelShape as ModelShape
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
