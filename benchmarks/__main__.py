"""`python -m benchmarks`, from the root of the repository. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

import mixln
from benchmarks.contenders import BESIDE_PRE, COMPILED_TRAINER, DEFAULT_CONTENDERS, MATRIX_PEAK, MIXLN, list_contenders
from benchmarks.documents import load_documents, make_tokenizer
from benchmarks.machine import describe_machine, machine_line
from benchmarks.measure import Measurement, Task, measure
from benchmarks.report import ContenderReport, Report, ScalingReport, SchemeReport, describe, write_results
from benchmarks.settings import (
    DEFAULT_MICRO_BATCH_SIZE,
    DEFAULT_STEPS,
    SEQUENCE_LENGTH,
    SIZES,
    Settings,
    vocabulary_of,
)
from mixln.device import default_device
from mixln.errors import InputError
from mixln.training import decide_precision
from mixln.training.precision import PrecisionName

_INPUT_ERROR, _INTERRUPTED = 2, 130
_COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_INPUT_ERROR, f"error: {message} (python -m benchmarks --help)\n")


@dataclass(frozen=True)
class Plan:
    """What is measured in every round, and what is made of it."""

    tasks: list[Task]
    report: Report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status: 0, 1 if a contender failed, 2 for bad input, 130 if interrupted."""
    given = _parser().parse_args(arguments)
    console = Console(stderr=True, soft_wrap=True)
    try:
        plan = _plan(given)
    except (InputError, mixln.PlacementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _INPUT_ERROR
    output = Path(given.output or f"out/benchmarks/{_mode(given)}-{given.size}.json")
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    machine = describe_machine()
    measurements: list[Measurement] = []

    def save() -> None:
        write_results(output, machine, command, measurements, plan.report)

    def report(measurement: Measurement) -> None:
        measurements.append(measurement)
        console.print(describe(measurement), markup=False, highlight=False)
        save()

    status = 0
    try:
        save()  # a file that cannot be written is found now, not at the end
        with tempfile.TemporaryDirectory() as folder:
            # what is compiled is compiled anew in the first round, and found again in the later ones
            os.environ[_COMPILER_CACHE] = folder
            measure_rounds(plan.tasks, given.rounds, given.timeout, report)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return _INPUT_ERROR
    except KeyboardInterrupt:
        status = _INTERRUPTED
    tables = Console(width=None if sys.stdout.isatty() else 160)
    for table in plan.report.tables(measurements):
        tables.print(table)
    tables.print(f"{machine_line()}, {given.threads} threads", markup=False, highlight=False, soft_wrap=True)
    tables.print(f"every measurement: {output}", markup=False, highlight=False, soft_wrap=True)
    return status or int(any(one.status == "failed" for one in measurements))


def measure_rounds(tasks: Sequence[Task], rounds: int, timeout: float, report: Callable[[Measurement], None]) -> None:
    """Measure A B C, A B C, ...; what fails the first time is left out of the later rounds."""
    given_up: set[str] = set()
    for number in range(rounds):
        for task in tasks:
            if task.label in given_up:
                continue
            measurement = measure(task, number, timeout)
            if number == 0 and measurement.status != "ok":
                given_up.add(task.label)
            report(measurement)


def _plan(given: argparse.Namespace) -> Plan:
    settings = _settings(given)
    if given.schemes is not None:
        return _scheme_plan(tuple(given.schemes or _all_placements()), settings)
    if given.scaling:
        return _scaling_plan(settings)
    compiled = [COMPILED_TRAINER] if given.trainer_compile else []
    contenders = tuple(dict.fromkeys([*(given.contenders or DEFAULT_CONTENDERS), *compiled]))
    tasks = [Task(MATRIX_PEAK, MATRIX_PEAK, settings), *(Task(name, name, settings) for name in contenders)]
    return Plan(tasks, ContenderReport(contenders))


def _all_placements() -> list[str]:
    return [*mixln.schemes(), *(f"pre+{modifier}" for modifier in mixln.modifiers())]


def _scheme_plan(schemes: tuple[str, ...], settings: Settings) -> Plan:
    others = tuple(scheme for scheme in schemes if scheme != "pre")
    tasks: list[Task] = []
    for scheme in others:
        mixln.Placement.parse(scheme)
        tasks.append(Task(scheme, BESIDE_PRE, replace(settings, placement=scheme)))
    return Plan(tasks, SchemeReport(others))


def _scaling_plan(settings: Settings) -> Plan:
    layers, rows = settings.recipe().model.num_hidden_layers, settings.micro_batch_size
    if rows < 2:
        raise InputError("--scaling halves and doubles the micro-batch: --micro-batch-size must be at least 2")
    points = [(layers // 2, rows), (layers, rows), (2 * layers, rows), (layers, rows // 2), (layers, 2 * rows)]
    labels = {(depth, batch): f"{depth} layers, {batch} rows" for depth, batch in points}
    tasks = [
        Task(label, MIXLN, replace(settings, num_layers=depth, micro_batch_size=batch))
        for (depth, batch), label in labels.items()
    ]
    return Plan(
        tasks,
        ScalingReport(
            layers={label: depth for (depth, batch), label in labels.items() if batch == rows},
            rows={label: batch for (depth, batch), label in sorted(labels.items()) if depth == layers},
        ),
    )


def _settings(given: argparse.Namespace) -> Settings:
    cache = Path(given.cache).expanduser() if given.cache else Path.home() / ".cache" / "mixln"
    settings = Settings(
        size=given.size,
        documents=given.documents,
        tokenizer=str(make_tokenizer(given.documents, vocabulary_of(given.size), cache)),
        micro_batch_size=given.micro_batch_size or DEFAULT_MICRO_BATCH_SIZE[given.size],
        accumulation=given.accumulate,
        warm_up_steps=given.warm_up_steps,
        steps=given.steps or DEFAULT_STEPS[given.size],
        threads=given.threads,
        precision="float32",
        cache=str(cache),
        seed=given.seed,
    )
    settings = replace(settings, precision=_precision(given, settings))
    load_documents(settings)  # tokenised here, once, not in the measurements
    return settings


def _precision(given: argparse.Namespace, settings: Settings) -> PrecisionName:
    """What is asked for, or what mixln decides for such a run on this machine: the same for all contenders."""
    recipe, threads = settings.recipe(), torch.get_num_threads()
    widths = recipe.model.hidden_size, recipe.model.intermediate_size
    tokens = settings.micro_batch_size * SEQUENCE_LENGTH
    torch.set_num_threads(settings.threads)
    try:
        return decide_precision(given.precision, default_device(), widths, tokens).name
    finally:
        torch.set_num_threads(threads)


def _mode(given: argparse.Namespace) -> str:
    if given.schemes is not None:
        return "schemes"
    return "scaling" if given.scaling else "contenders"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m benchmarks",
        description="Measure training side by side, in interleaved rounds, every measurement in a process of its own.",
        epilog="example: python -m benchmarks --size nano --documents documents.jsonl.gz --rounds 7",
        allow_abbrev=False,
    )
    parser.add_argument("--size", choices=SIZES, default="nano", help="recipe of the model; default: nano")
    parser.add_argument(
        "--documents", default="python", metavar="FILE", help="corpus; default: python, the standard library's own text"
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--contenders", nargs="+", choices=list_contenders(), metavar="NAME", help=f"of {', '.join(list_contenders())}"
    )
    modes.add_argument(
        "--schemes", nargs="*", metavar="SCHEME", help="measure these beside pre; none given: every scheme and modifier"
    )
    modes.add_argument("--scaling", action="store_true", help="measure step time and memory against layers and batch")
    parser.add_argument("--trainer-compile", action="store_true", help=f"measure {COMPILED_TRAINER} too")
    parser.add_argument("--rounds", type=_at_least(1), default=5, help="default: 5")
    parser.add_argument("--steps", type=_at_least(1), help=f"measured steps; default: {_by_size(DEFAULT_STEPS)}")
    parser.add_argument("--warm-up-steps", type=_at_least(1), default=3, help="steps before them; default: 3")
    parser.add_argument(
        "--micro-batch-size", type=_at_least(1), help=f"rows of 256; default: {_by_size(DEFAULT_MICRO_BATCH_SIZE)}"
    )
    parser.add_argument("--accumulate", type=_at_least(1), default=1, help="micro-batches in a step; default: 1")
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of all contenders; default: auto, what mixln decides on this machine",
    )
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    parser.add_argument("--threads", type=_at_least(1), default=threads, help=f"of PyTorch; here by default: {threads}")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="default: 0")
    parser.add_argument("--timeout", type=_at_least(1), default=1800, help="seconds for a process; default: 1800")
    parser.add_argument("--cache", help="folder for the tokenizer and the tokens; default: ~/.cache/mixln")
    parser.add_argument("--output", help="JSON file; default: out/benchmarks/MODE-SIZE.json")
    return parser


def _by_size(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} ({size})" for size, number in numbers.items())


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    number.__name__ = f"whole number of at least {least}"
    return number


if __name__ == "__main__":
    sys.exit(main())
