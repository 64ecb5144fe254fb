"""How far `mixln estimate` is off: `python -m benchmarks.estimate_error`.

Predicts and measures the step time and the peak memory of a few sizes, one process for each measurement, and prints
both with the error. The processor's utilisation was calibrated on 71m alone (docs/reference/estimate.md): the other
sizes are predictions. `--calibrate` prints the utilisation that would make each size exact.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import torch

from mixln.data import DataConfig, prepare_data
from mixln.device import default_device
from mixln.estimation import Estimate, estimate
from mixln.tasks import ModelConfig, Recipe
from mixln.training.distributed import Processes

_ROOT = Path(__file__).resolve().parent.parent
_MIB = 2**20
_WARM_UP_STEPS = 3

_VOCABULARIES = {"nano": 4096, "20m": 16_000, "71m": 32_000}
_MODELS = {
    "nano": ModelConfig(),
    "20m": ModelConfig(hidden_size=256, intermediate_size=688, num_hidden_layers=12, num_attention_heads=8),
    "71m": ModelConfig(hidden_size=512, intermediate_size=1368, num_hidden_layers=12, num_attention_heads=8),
}
SIZES = tuple(_MODELS)
"""Nano, about 20M parameters, and the 71M recipe."""


class Row(TypedDict):
    """One size, predicted and measured: seconds and bytes."""

    size: str
    parameters: int
    predicted_seconds: float
    measured_seconds: float
    predicted_bytes: float
    measured_bytes: int
    utilization: float


def recipe_of(size: str, rows: int, steps: int) -> Recipe:
    """Return the recipe of a size with one small micro-batch a step, compiled, for all sizes alike."""
    recipe = Recipe()
    return replace(
        recipe,
        model=_MODELS[size],
        data=DataConfig(corpus="python", vocab_size=_VOCABULARIES[size], max_tokens=2_000_000),
        steps=1000,
        stop_step=_WARM_UP_STEPS + steps,
        batch_size=rows,
        execution=replace(recipe.execution, compile="always"),
    )


def engine_steps(recipe: Recipe) -> Iterator[None]:
    """Build the recipe's model and train it, and yield after every step: the one place that calls the engine."""
    from benchmarks.contenders.engine import engine_steps as steps

    data = prepare_data(recipe.data)
    for _ in steps(recipe, data, Processes(default_device())):
        yield


def measure(size: str, rows: int, steps: int) -> Row:
    """Predict and measure one size in this process."""
    from benchmarks.documents import Counts
    from benchmarks.meter import Meter

    recipe = recipe_of(size, rows, steps)
    prepare_data(recipe.data)  # before the clock starts
    predicted = estimate(recipe, "cpu")
    meter = Meter(torch.device("cpu"))
    meter.begin()
    for _ in engine_steps(recipe):
        meter.finish_step(Counts(rows, rows))
        if len(meter.step_seconds) == _WARM_UP_STEPS:
            _reset_peak()  # compiling takes memory too
    seconds = statistics.median(meter.step_seconds[_WARM_UP_STEPS:])
    return Row(
        size=size,
        parameters=predicted.parameters.total,
        predicted_seconds=predicted.time.step_seconds,
        measured_seconds=seconds,
        predicted_bytes=predicted.chosen.memory.total,
        measured_bytes=meter.peak_bytes(),
        utilization=_exact_utilization(predicted, seconds),
    )


def _exact_utilization(predicted: Estimate, seconds: float) -> float:
    return predicted.device.utilization * predicted.time.step_seconds / seconds


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        print("the peak of memory includes compilation: /proc/self/clear_refs cannot be written", file=sys.stderr)


def _in_a_process(size: str, rows: int, steps: int, threads: int) -> Row:
    command = [sys.executable, "-m", "benchmarks.estimate_error", "--only", size]
    command += ["--rows", str(rows), "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    finished = subprocess.run(command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: Row = json.loads(finished.stdout.splitlines()[-1])
    return found


def _line(row: Row, calibrate: bool) -> str:
    cells = [
        row["size"],
        f"{row['parameters']:,}",
        *_pair(row["predicted_seconds"], row["measured_seconds"], ".3f"),
        *_pair(row["predicted_bytes"] / _MIB, row["measured_bytes"] / _MIB, ".0f"),
    ]
    return "| " + " | ".join(cells + [f"{row['utilization']:.2f}"] * calibrate) + " |"


def _pair(predicted: float, measured: float, form: str) -> tuple[str, str, str]:
    return f"{predicted:{form}}", f"{measured:{form}}", f"{predicted / measured - 1:+.0%}"


def main() -> int:
    """Print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8, help="rows of 256 tokens in a step")
    parser.add_argument("--steps", type=int, default=10, help="measured steps, after the warm-up")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of PyTorch")
    parser.add_argument("--calibrate", action="store_true", help="print the utilisation that would be exact")
    parser.add_argument("--only", choices=SIZES, default=None, help="measure one size here, and print JSON")
    given = parser.parse_args()
    if given.only is not None:
        print(json.dumps(measure(given.only, given.rows, given.steps)))
        return 0
    started = time.perf_counter()
    names = ["size", "parameters", "s predicted", "s measured", "error", "MiB predicted", "MiB measured", "error"]
    names += ["utilization"] * given.calibrate
    print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names), flush=True)
    for size in SIZES:
        print(_line(_in_a_process(size, given.rows, given.steps, given.threads), given.calibrate), flush=True)
    print(f"\n{given.threads} threads, {given.rows} rows, {time.perf_counter() - started:.0f} seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
