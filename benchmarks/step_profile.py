"""Where the time of a step goes: `python -m benchmarks.step_profile --size 71m`.

Runs mixln's engine under PyTorch's profiler and divides the operators' own time (that of operators they call is not
counted twice) among the parts of a step. Of a multiplication, the operations per second are given too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch._inductor.config import cpp
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders.engine import engine_steps
from benchmarks.documents import load_documents, make_tokenizer
from benchmarks.machine import machine_line
from benchmarks.settings import DEFAULT_MICRO_BATCH_SIZE, SIZES, Settings, vocabulary_of
from mixln.training.distributed import Processes

_WARM_UP_STEPS = 3


@dataclass
class Part:
    """A part of the step: its time and operations over all profiled steps."""

    seconds: float = 0.0
    operations: float = 0.0


@dataclass(frozen=True)
class Operator:
    """One operator at one set of shapes.

    Attributes:
        name: as PyTorch's profiler has it.
        shapes: of its inputs that are tensors.
        calls: how often it ran.
        seconds: its own time in all calls.
    """

    name: str
    shapes: list[list[int]]
    calls: int
    seconds: float

    @property
    def operations(self) -> float:
        """Floating-point operations of all calls, if it multiplies matrices; else 0."""
        if self.name not in ("aten::mm", "aten::bmm"):
            return 0.0
        left, right = self.shapes[:2]
        return 2.0 * prod(left) * right[-1] * self.calls


def part_of(operator: Operator, vocabulary: int, tokens: int) -> str:
    """Name the part of the step that an operator belongs to."""
    name = operator.name
    if name == "aten::mm":
        left, right = operator.shapes[:2]
        if vocabulary in (*left, *right):
            return "matrix multiplications of the head"
        # a weight's gradient is the one that sums over tokens
        return "gradients of the blocks' weights" if left[1] == tokens else "other multiplications of the blocks"
    if name == "aten::bmm":
        return "attention's multiplications"
    if "adam" in name.lower():
        return "optimiser"
    if "fused" in name:
        if "logsumexp" in name:
            return "loss of the head"
        # the only fused kernel of attention
        return "softmax of attention" if "softmax" in name else "other compiled kernels (norms, gates, rotation, casts)"
    return "everything else (embedding, clipping, Python)"


def divide(operators: Iterable[Operator], vocabulary: int, tokens: int) -> dict[str, Part]:
    """Sum operators into parts, the longest first."""
    parts: dict[str, Part] = {}
    for operator in operators:
        part = parts.setdefault(part_of(operator, vocabulary, tokens), Part())
        part.seconds += operator.seconds
        part.operations += operator.operations
    return dict(sorted(parts.items(), key=lambda item: -item[1].seconds))


def profile_steps(settings: Settings) -> list[Operator]:
    """Train, and return the operators of the steps after the warm-up."""
    torch.set_num_threads(settings.threads)
    cpp.enable_kernel_profile = True  # else all kernels of a compiled block are one operator
    steps = engine_steps(settings.recipe(), load_documents(settings), Processes(torch.device("cpu")))
    for _ in range(settings.warm_up_steps):
        next(steps)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in steps:
            pass
    return [
        Operator(
            event.key,
            [shape for shape in event.input_shapes if shape],
            event.count,
            event.self_cpu_time_total / 1e6,
        )
        for event in profiler.key_averages(group_by_input_shape=True)
    ]


def main() -> int:
    """Print the parts of a step, and with `--operators` the operators that take longest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="71m")
    parser.add_argument("--documents", default="python", metavar="FILE", help="corpus; default: python")
    parser.add_argument("--micro-batch-size", type=int, default=None, help="default: 8 (nano), 16 (71m, 250m), 4 (1b)")
    parser.add_argument("--steps", type=int, default=4, help="profiled steps; default: 4")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", default="~/.cache/mixln", help="folder for the tokenizer and the tokens")
    parser.add_argument("--operators", type=int, default=0, metavar="N", help="print the N longest operators too")
    given = parser.parse_args()
    cache = Path(given.cache).expanduser()
    settings = Settings(
        size=given.size,
        documents=given.documents,
        tokenizer=str(make_tokenizer(given.documents, vocabulary_of(given.size), cache)),
        micro_batch_size=given.micro_batch_size or DEFAULT_MICRO_BATCH_SIZE[given.size],
        accumulation=1,
        warm_up_steps=_WARM_UP_STEPS,
        steps=given.steps,
        threads=given.threads,
        precision=given.precision,
        cache=str(cache),
    )
    operators = profile_steps(settings)
    total = sum(operator.seconds for operator in operators)
    milliseconds = total / given.steps * 1e3
    print(f"{machine_line()}, {given.threads} threads, {given.precision}: {milliseconds:.0f} ms a step\n")
    print("| part | ms | share | Gflop/s |\n| --- | --- | --- | --- |")
    tokens = settings.micro_batch_size * settings.recipe().data.sequence_length
    for name, part in divide(operators, vocabulary_of(given.size), tokens).items():
        rate = f"{part.operations / part.seconds / 1e9:,.0f}" if part.operations else ""
        print(f"| {name} | {part.seconds / given.steps * 1e3:.0f} | {part.seconds / total:.0%} | {rate} |")
    for operator in sorted(operators, key=lambda one: -one.seconds)[: given.operators]:
        milliseconds = operator.seconds / given.steps * 1e3
        print(f"{milliseconds:8.1f} ms {operator.calls:5d} x {operator.name[:90]} {operator.shapes[:2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
