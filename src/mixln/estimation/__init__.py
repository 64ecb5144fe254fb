"""What a training run needs before it is started: parameters, operations, memory, time and cost.

Everything but the parameter count is a model of the engine, not a measurement. Its assumptions are part of the result,
and `benchmarks/estimate_error.py` measures how far off it is.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.estimation.devices import DEVICES as DEVICES
    from mixln.estimation.devices import find_device as find_device
    from mixln.estimation.memory import ShardingPlan as ShardingPlan
    from mixln.estimation.memory import memory_use as memory_use
    from mixln.estimation.operations import count_operations as count_operations
    from mixln.estimation.parameters import count_parameters as count_parameters
    from mixln.estimation.result import Estimate as Estimate
    from mixln.estimation.run import estimate as estimate
    from mixln.estimation.shape import ModelShape as ModelShape
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
