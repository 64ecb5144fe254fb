"""The estimate of a run, made before it starts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from mixln.errors import InputError
from mixln.estimation.devices import CPU, Device, find_device
from mixln.estimation.kinds import ESTIMATED, EstimatedKind
from mixln.estimation.measure import measure_cpu
from mixln.estimation.memory import MemoryUse, MicroBatch, ShardingPlan, memory_use
from mixln.estimation.operations import count_operations
from mixln.estimation.result import PlanEstimate, TimeEstimate
from mixln.estimation.run_estimate import RunEstimate
from mixln.estimation.shape import FLOAT32
from mixln.estimation.traffic import count_communication, count_traffic
from mixln.tasks.kinds import AnyRecipe, kind_of
from mixln.training.precision import Precision, decide_precision

USABLE_MEMORY = 0.92
"""Share of a device's memory that tensors can have; the rest is for the driver, communication and fragmentation."""

_MOST_DEVICES = 4096


def estimate(
    recipe: AnyRecipe,
    device: str | Device,
    count: int = 1,
    *,
    utilization: float | None = None,
    price: float | None = None,
) -> RunEstimate:
    """Return what a recipe's run needs on some devices.

    The time of a step is

        max((operations / peak + bytes / bandwidth) / utilization, overlapping / interconnect) + blocking / interconnect

    with the operations of `count_operations`, the bytes of `count_traffic`, and what `count_communication` says is
    sent, all for one device.

    Args:
        recipe: the run.
        device: name of a device, or one with values of your own.
        count: number of devices.
        utilization: share of its peaks that a training step reaches, in (0, 1]; None: the device's default.
        price: of one device for one hour; None: the device's default, if it has one.

    Raises:
        InputError: no such device, numbers out of range, or a count that the recipe cannot be shared among.
        PlacementError: the recipe's model cannot be built.
    """
    return _Estimator(recipe, device, count, utilization, price).estimate()


class _Estimator:
    def __init__(
        self, recipe: AnyRecipe, device: str | Device, count: int, utilization: float | None, price: float | None
    ) -> None:
        self.recipe, kind = recipe, kind_of(recipe)
        kind.check(recipe)
        self.estimated = ESTIMATED[kind]
        self.count = count
        _check_numbers(count, utilization, price)
        self.own_plan = _own_plan(self.estimated, recipe, count)
        self.shape = self.estimated.shape(recipe)
        self.row = self.estimated.counted_in_a_row(self.shape)
        found = find_device(device) if isinstance(device, str) and device != CPU else device
        rows = self.micro_batch(self.own_plan).rows
        self.precision = _precision(recipe, found, rows)
        self.low = 2 if self.precision.name == "bfloat16" else FLOAT32
        if isinstance(found, str):
            found = measure_cpu(self.shape, rows, torch.bfloat16 if self.low == 2 else torch.float32)
        self.device = replace(
            found,
            utilization=found.utilization if utilization is None else utilization,
            utilization_reason=found.utilization_reason if utilization is None else "given",
            price_per_hour=found.price_per_hour if price is None else price,
        )
        self.compiled = recipe.execution.compile != "never"
        self.explicit_attention = self.estimated.is_explicit(
            recipe, torch.device(self.device.kind), compiled=self.compiled
        )
        self.parameters = self.estimated.parameters(recipe)
        # for each of what is counted
        self.operations = count_operations(
            self.shape,
            self.parameters,
            explicit_attention=self.explicit_attention,
            activation_checkpointing=self.own_plan.activation_checkpointing,
        ).times(self.shape.sequence // self.row)
        self.peak = self.device.bfloat16_tflops if self.low == 2 else self.device.float32_tflops
        self.usable = USABLE_MEMORY * self.device.memory_gib * 2**30

    def estimate(self) -> RunEstimate:
        plans = tuple(self.plan_estimate(plan) for plan in self.shown_plans())
        own = next(plan for plan in plans if plan.chosen)
        return RunEstimate(
            parameters=self.parameters,
            operations=self.operations,
            tokens_per_step=self.recipe.batch_size * self.row,
            steps=self.recipe.last_step,
            device=self.device,
            count=self.count,
            usable_bytes=self.usable,
            plans=plans,
            time=self.time(),
            advice=() if own.fits else tuple(self.advice()),
            assumptions=tuple(self.assumptions()),
            terms=self.estimated.terms,
        )

    def micro_batch(self, plan: ShardingPlan, size: int | None = None) -> MicroBatch:
        return MicroBatch.of(self.recipe.batch_size, size or self.recipe.micro_batch_size, plan.data_shares)

    def memory(self, plan: ShardingPlan, size: int | None = None) -> MemoryUse:
        return memory_use(
            self.shape,
            self.parameters,
            plan,
            self.micro_batch(plan, size),
            low=self.low,
            explicit_attention=self.explicit_attention,
            libraries=self.device.library_bytes,
        )

    def fits(self, plan: ShardingPlan, size: int | None = None) -> bool:
        return self.memory(plan, size).total <= self.usable

    def plan_estimate(self, plan: ShardingPlan) -> PlanEstimate:
        micro_batch = self.micro_batch(plan)
        return PlanEstimate(
            label=plan.label,
            plan=plan,
            rows=micro_batch.rows,
            micro_batches=micro_batch.count,
            memory=self.memory(plan),
            fits=self.fits(plan),
            chosen=plan == self.own_plan,
        )

    def shown_plans(self) -> list[ShardingPlan]:
        """The recipe's own plan, and those that a change of `execution` alone would give."""
        strategies = ["ddp"] if self.count == 1 else ["ddp", "fsdp"]
        plans = [ShardingPlan(name, self.count, 1, again) for name in strategies for again in (False, True)]
        plans = [plan for plan in plans if self.recipe.batch_size % plan.data_shares == 0]
        size = self.own_plan.tensor_parallel_size
        if size > 1:
            plans += [ShardingPlan("fsdp", self.count, size, again) for again in (False, True)]
        return plans

    def time(self) -> TimeEstimate:
        recipe, device, plan = self.recipe, self.device, self.own_plan
        micro_batch, peak = self.micro_batch(plan), 1e12 * self.peak
        counted = recipe.batch_size * self.row
        matrix_seconds = self.operations.executed * counted / self.count / peak
        moved = count_traffic(
            self.shape,
            self.parameters,
            plan,
            tokens=recipe.batch_size * self.shape.sequence / plan.data_shares,
            micro_batches=micro_batch.count,
            low=self.low,
            explicit_attention=self.explicit_attention,
            clips=recipe.optimizer.max_grad_norm > 0,
        )
        traffic_seconds = moved / (1e9 * device.bandwidth)
        sent = count_communication(self.shape, self.parameters, plan, micro_batch, low=self.low)
        overlapping, blocking = (part / (1e9 * device.interconnect) for part in sent)
        step_seconds = max((matrix_seconds + traffic_seconds) / device.utilization, overlapping) + blocking
        hours = step_seconds * recipe.last_step / 3600
        tokens_per_second = counted / step_seconds
        price = device.price_per_hour
        return TimeEstimate(
            step_seconds=step_seconds,
            matrix_seconds=matrix_seconds,
            traffic_seconds=traffic_seconds,
            communication_seconds=overlapping + blocking,
            tokens_per_second=tokens_per_second,
            model_flops_utilization=self.operations.model * tokens_per_second / (peak * self.count),
            hours=hours,
            device_hours=hours * plan.devices,
            cost=None if price is None else hours * plan.devices * price,
        )

    def advice(self) -> Iterator[str]:
        """Yield what to change so that it fits: each alone if that is enough, else all of it."""
        own = self.own_plan
        if not own.activation_checkpointing and self.fits(replace(own, activation_checkpointing=True)):
            yield "set execution.activation_checkpointing: true (a third more operations in the blocks)"
        rows = self.micro_batch(own).rows
        if (smaller := self.largest_rows(own, rows)) is not None:
            yield f"set micro_batch_size: {smaller} (now {rows})"
        if own.strategy == "ddp" and self.count > 1 and self.fits(replace(own, strategy="fsdp")):
            yield "set execution.strategy: fsdp"
        if (more := self.fewest_devices(own, None)) is not None:
            how = "" if own.strategy == "fsdp" else " with execution.strategy: fsdp"
            yield f"use {more} devices{how}"
        last = replace(own, strategy="fsdp" if self.count > 1 else "ddp", activation_checkpointing=True)
        everything = "execution.activation_checkpointing: true and "
        if self.count > 1 and own.strategy == "ddp":
            everything += "execution.strategy: fsdp and "
        if (smaller := self.largest_rows(last, rows + 1)) is not None and not self.fits(last):
            yield f"set {everything}micro_batch_size: {smaller}"
        elif (more := self.fewest_devices(last, 1)) is not None and smaller is None:
            yield (
                "or set execution.activation_checkpointing: true, execution.strategy: fsdp and micro_batch_size: 1, "
                f"and use {more} devices"
            )

    def largest_rows(self, plan: ShardingPlan, below: int) -> int | None:
        """Return the largest power of two below a number of rows with which a plan fits."""
        sizes = [2**power for power in range(below.bit_length()) if 2**power < below]
        return next((size for size in reversed(sizes) if self.fits(plan, size)), None)

    def fewest_devices(self, plan: ShardingPlan, size: int | None) -> int | None:
        """Return the smallest power of two times the devices with which FSDP fits."""
        wider = replace(plan, strategy="fsdp", devices=2 * self.count)
        while wider.devices <= _MOST_DEVICES and self.recipe.batch_size % wider.data_shares == 0:
            if self.fits(wider, size):
                return wider.devices
            wider = replace(wider, devices=2 * wider.devices)
        return None

    def assumptions(self) -> Iterator[str]:
        device = self.device
        yield (
            f"a step takes (operations / peak + bytes / bandwidth) / utilisation; utilisation {device.utilization:g}: "
            f"{device.utilization_reason}; `utilization` sets it"
        )
        peak = f"{self.peak:.4g} TFLOP/s {'bfloat16' if self.low == 2 else 'float32'}"
        yield f"{device.name}: {peak}, {device.memory_gib:.3g} GiB, {device.bandwidth:,.0f} GB/s"
        if self.count > 1:
            yield (
                f"{self.count} devices at {device.interconnect:,.0f} GB/s to each other, as in one machine; exchange "
                "of weights and gradients hidden behind computation as far as that is longer, tensor parallelism's not"
            )
        attention = "explicit softmax" if self.explicit_attention else "a fused kernel"
        yield f"blocks are compiled; attention by {attention}; residual stream float32; " + (
            "matrices multiplied in bfloat16, weights and optimiser float32" if self.low == 2 else "float32 throughout"
        )
        yield f"precision {self.precision}"
        if not self.compiled:
            yield "execution.compile is never: uncompiled blocks keep and move more than is counted here"
        yield f"{1 - USABLE_MEMORY:.0%} of the memory is left to the driver, communication and fragmentation"
        yield (
            f"{self.estimated.assumption(self.recipe, self.shape)}; validation, checkpoints, data loading and "
            "compilation take no time"
        )


def _check_numbers(count: int, utilization: float | None, price: float | None) -> None:
    if count < 1:
        raise InputError(f"`count` must be at least 1, not {count}")
    if utilization is not None and not 0 < utilization <= 1:
        raise InputError(f"`utilization` must be above 0 and at most 1, not {utilization}")
    if price is not None and not (price >= 0 and math.isfinite(price)):
        raise InputError(f"`price` must be a number of at least 0, not {price}")


def _own_plan(estimated: EstimatedKind, recipe: AnyRecipe, count: int) -> ShardingPlan:
    execution = recipe.execution
    size = execution.tensor_parallel_size
    if count % size != 0:
        raise InputError(
            f"`count` ({count}) is not a multiple of execution.tensor_parallel_size ({size}). Change one of them"
        )
    estimated.check_split(recipe, size)
    if recipe.batch_size % (count // size) != 0:
        raise InputError(
            f"batch_size ({recipe.batch_size}) is not a multiple of the {count // size} shares that `count={count}` "
            "makes of it. Change one of them"
        )
    strategy = "ddp" if count == 1 else execution.strategy
    return ShardingPlan(strategy, count, size, execution.activation_checkpointing)


def _precision(recipe: AnyRecipe, device: str | Device, rows: int) -> Precision:
    """What a run would be in: on this machine's processor as the run itself would decide, elsewhere bfloat16."""
    if isinstance(device, str):
        widths = recipe.model.hidden_size, recipe.model.intermediate_size
        return decide_precision(recipe.precision, torch.device(CPU), widths, rows * kind_of(recipe).positions(recipe))
    if recipe.precision != "auto":
        return Precision(recipe.precision, "as the recipe says", recipe.precision, device.name)
    return Precision("bfloat16", f"{device.name} has units for bfloat16", "auto", device.name)
