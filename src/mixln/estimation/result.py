"""The result of an estimate, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mixln.estimation.devices import Device
from mixln.estimation.memory import MemoryUse, ShardingPlan
from mixln.estimation.operations import Operations
from mixln.estimation.parameters import ParameterCount


@dataclass(frozen=True)
class EstimateTerms:
    """The words of an estimate; the defaults are those of language models.

    Attributes:
        unit: what training counts, in the plural.
        one: one of them.
        rows: what a row is, in the plural.
        counted: what a step has of them.
        embedding: what is no factor of a multiplication.
        other: what is in no block, and neither embedding nor head.
        matrices: how their operations are counted.
        attention: how its operations are counted.
    """

    unit: str = "tokens"
    one: str = "token"
    rows: str = "sequences"
    counted: str = "token slots"
    embedding: str = "input embedding"
    other: str = "other norms"
    matrices: str = "6 * parameters but the input embedding"
    attention: str = "attention, 12 * layers * width * T / 2 (causal)"


@dataclass(frozen=True)
class PlanEstimate:
    """One way of sharing the model.

    Attributes:
        label: its name.
        plan: the devices and what is sharded among them.
        rows: sequences in a micro-batch on one device.
        micro_batches: of one device in a step.
        memory: bytes on each device.
        fits: whether they fit.
        chosen: whether it is the recipe's.
    """

    label: str
    plan: ShardingPlan
    rows: int
    micro_batches: int
    memory: MemoryUse
    fits: bool
    chosen: bool


@dataclass(frozen=True)
class TimeEstimate:
    """Time of the run under the recipe's own plan.

    Attributes:
        step_seconds: of one optimiser step.
        matrix_seconds: matrix multiplications in it, at the device's peak.
        traffic_seconds: memory traffic in it, at the device's bandwidth.
        communication_seconds: communication in it, at the interconnect's; hidden behind the rest, as far as it can be.
        tokens_per_second: token slots, or images, of all devices together.
        model_flops_utilization: operations that the model needs, per second, as a share of the peak of all devices.
        hours: wall-clock of all steps; without validation, checkpoints and interruptions.
        device_hours: times the number of devices.
        cost: device_hours * price; None: no price.
    """

    step_seconds: float
    matrix_seconds: float
    traffic_seconds: float
    communication_seconds: float
    tokens_per_second: float
    model_flops_utilization: float
    hours: float
    device_hours: float
    cost: float | None


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        parameters: of the model.
        operations: for each token, or image.
        tokens_per_step: token slots, or images, of an optimiser step.
        steps: optimiser steps.
        device: it runs on, with the utilisation and the price that were used.
        count: number of devices.
        usable_bytes: memory of one device that tensors can have.
        plans: memory, for each way of sharing the model.
        time: of the recipe's own plan.
        advice: if that does not fit: what to change; else empty.
        assumptions: of the estimate, a sentence each.
        terms: its words.
    """

    parameters: ParameterCount
    operations: Operations
    tokens_per_step: int
    steps: int
    device: Device
    count: int
    usable_bytes: float
    plans: tuple[PlanEstimate, ...]
    time: TimeEstimate
    advice: tuple[str, ...]
    assumptions: tuple[str, ...]
    terms: EstimateTerms = field(default_factory=EstimateTerms)

    @property
    def chosen(self) -> PlanEstimate:
        """The recipe's own plan."""
        return next(plan for plan in self.plans if plan.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as nested plain values, with the totals; what counts bears the name of what is counted."""
        values = asdict(self)
        del values["terms"]
        unit = self.terms.unit
        values[f"{unit}_per_step"] = values.pop("tokens_per_step")
        values["time"][f"{unit}_per_second"] = values["time"].pop("tokens_per_second")
        for shown, plan in zip(values["plans"], self.plans, strict=True):
            shown["memory"]["total"] = plan.memory.total
        return values
