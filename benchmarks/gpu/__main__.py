"""`python -m benchmarks.gpu`, from the root of the repository. See benchmarks/README.md."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

from rich.console import Console

from benchmarks.contenders import MATRIX_PEAK, MIXLN
from benchmarks.documents import load_documents, make_tokenizer
from benchmarks.gpu.budget import RESERVE, Part, shared_out
from benchmarks.gpu.device import count_gpus, describe_device, first_gpu
from benchmarks.gpu.diagnosis import config_for, measure_diagnosis
from benchmarks.gpu.markdown import to_markdown
from benchmarks.gpu.options import INPUT_ERROR, Options, read_options
from benchmarks.gpu.prediction import needed_bytes, predict
from benchmarks.gpu.processes import Process
from benchmarks.gpu.results import Recorder, Results
from benchmarks.gpu.resume import measure_resuming
from benchmarks.gpu.side_by_side import Place, in_groups, train_side_by_side
from benchmarks.machine import describe_machine
from benchmarks.measure import Task
from benchmarks.settings import Settings
from mixln import PlacementError
from mixln.errors import InputError

_INTERRUPTED = 130
_USABLE_MEMORY = 0.95

_WHOLE_MODEL = 2.0
"""How much longer than mixln those take to start that compile the whole model, not its blocks."""


class Benchmark:
    """All parts, on one device.

    Args:
        options: see there.
        recorder: for what is found.
        folder: for logs, compiled code and runs; not kept.
    """

    def __init__(self, options: Options, recorder: Recorder, folder: Path) -> None:
        self._options = options
        self._recorder = recorder
        self._place = Place(folder, first_gpu())
        self._settings: dict[str, Settings] = {}

    def prepare(self, until: float) -> None:
        """Ask the device and measure its peak, and beside that train the tokenizers and tokenise.

        Raises:
            InputError: the device cannot be used, or there is no such corpus.
        """
        options, results = self._options, self._recorder.results
        # the peak is that of the largest model's shapes, for which no tokenizer is needed
        largest = options.settings(options.sizes[-1], Path())
        process = Process("device", describe_device, (largest,), self._place.folder, self._place.environment)
        try:
            for size in options.sizes:
                vocabulary = options.settings(size, Path()).vocabulary
                tokenizer = make_tokenizer(options.documents, vocabulary, options.cache)
                self._settings[size] = options.settings(size, tokenizer)
                load_documents(self._settings[size])
            message = process.receive(until)
        finally:
            process.end()
        if message["status"] != "ok":
            raise InputError(f"the device cannot be used: {message['message']}")
        results.device = {**message["values"]["device"], "count": max(1, count_gpus())}
        results.peak = message["values"]["peak"]
        peak = max(results.peak.values())
        self._recorder.say(f"{results.device['name']}: {peak / 1e12:,.4g} Tflop/s in {options.precision}")
        self._recorder.save()

    def parts(self) -> list[Part]:
        """Return all parts but the preparation, in their order, with about the seconds that they take on a fast GPU."""
        smallest, largest = self._options.sizes[0], self._options.sizes[-1]
        toy = self._options.toy
        weights = {"71m": 80.0, "250m": 120.0, "1b": 240.0}
        parts = [
            Part(f"training {size}", weights.get(size, 100.0), lambda until, size=size: self.train(size, until), 15)
            for size in self._options.sizes
        ]
        parts.append(Part("kill and resume", 75.0, lambda until: self.resume(smallest, until), 5 if toy else 40))
        parts.append(Part("diagnosis", 65.0, lambda until: self.diagnose(largest, until), 5 if toy else 25))
        if self._options.processes > 1:
            parts.append(Part("several processes", 120.0, lambda until: self.several(largest, until), 30))
        else:
            self._recorder.leave_out("several processes: one GPU was to be used")
        return parts

    def train(self, size: str, until: float) -> None:
        """Train a size with every contender."""
        options, settings = self._options, self._settings[size]
        tasks = [Task(f"{size} {one}", MIXLN, replace(settings, placement=one)) for one in options.schemes]
        tasks += [Task(f"{size} {name}", name, settings) for name in options.others]
        needs = {task.label: needed_bytes(task.settings, task.contender) for task in tasks}
        capacity = _USABLE_MEMORY * self._recorder.results.device["free_bytes"]
        # little memory, so with every group
        peak = Task(f"{size} {MATRIX_PEAK}", MATRIX_PEAK, settings)
        groups = [[*group, peak] for group in in_groups(tasks, needs, capacity)]
        for task in tasks:
            if not any(task in group for group in groups):
                needed, there = needs[task.label] / 2**30, capacity / 2**30
                self._recorder.leave_out(f"{task.label}: needs about {needed:.1f} GiB, {there:.1f} are there")
        self._train_groups(groups, until)

    def _train_groups(self, groups: list[list[Task]], until: float) -> None:
        device, options = self._recorder.results.device, self._options
        for task in chain.from_iterable(groups):
            if task.contender == MIXLN and (found := predict(task.settings, device["estimated_as"])) is not None:
                self._recorder.results.predictions[task.label] = found
        parts = [
            Part(
                ", ".join(task.label for task in group),
                sum(_WHOLE_MODEL if task.contender in options.others else 1.0 for task in group),
                lambda end, number=number, group=group: train_side_by_side(
                    group, options.turns, end, self._place, self._recorder, number * options.turns.count
                ),
                10,
            )
            for number, group in enumerate(groups)
        ]
        for part, end in shared_out(parts, until, self._recorder.leave_out):
            part.run(end)

    def several(self, size: str, until: float) -> None:
        """Train a size on several processes, one strategy after the other: each has all GPUs."""
        settings = replace(self._settings[size], processes=self._options.processes)
        tasks = [
            Task(f"{size} {name} x{settings.processes}", MIXLN, replace(settings, strategy=name))
            for name in ("ddp", "fsdp")
        ]
        self._train_groups([[task] for task in tasks], until)

    def resume(self, size: str, until: float) -> None:
        """Kill a run of a size and take it up again."""
        options = self._options
        placement = options.schemes[min(1, len(options.schemes) - 1)]
        settings = self._settings[size]
        few = replace(settings, placement=placement, accumulation=min(2, settings.accumulation))
        measure_resuming(few, until, self._place, self._recorder)

    def diagnose(self, size: str, until: float) -> None:
        """Diagnose a model of a size."""
        config = config_for(self._options.diagnosis_tokens)
        measure_diagnosis(self._settings[size], config, until, self._place, self._recorder)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status: 0, 1 if something failed, 2 for bad input, 130 if interrupted."""
    begun = time.monotonic()
    console = Console(stderr=True, soft_wrap=True)
    try:
        options = read_options(arguments, count_gpus())
        command = shlex.join(["python", "-m", "benchmarks.gpu", *(sys.argv[1:] if arguments is None else arguments)])
        results = Results(command, describe_machine(), 60 * options.minutes, options.toy)
        recorder = Recorder(
            results, options.output, to_markdown, lambda line: console.print(line, markup=False, highlight=False)
        )
        recorder.save()  # a file that cannot be written is found now, not at the end
        status = _run(options, recorder, begun + results.budget_seconds - RESERVE)
    except (InputError, PlacementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return INPUT_ERROR
    print(to_markdown(results))
    print(f"every measurement: {recorder.path}; this table: {recorder.table_path}")
    return status


def _run(options: Options, recorder: Recorder, end: float) -> int:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # compilers start with an empty cache, and share the processor
        cores = os.cpu_count() or 1
        os.environ |= {
            "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "compiled"),
            "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, cores // (len(options.schemes) + len(options.others)))),
            "TOKENIZERS_PARALLELISM": "false",
        }
        benchmark = Benchmark(options, recorder, Path(folder))
        try:
            benchmark.prepare(end)
            for part, until in shared_out(benchmark.parts(), end, recorder.leave_out):
                started = time.monotonic()
                recorder.say(f"{part.name}: {until - started:.0f} s at most")
                try:
                    part.run(until)
                finally:
                    recorder.results.seconds[part.name] = time.monotonic() - started
                    recorder.save()
        except KeyboardInterrupt:
            recorder.leave_out("everything after Ctrl-C")
            return _INTERRUPTED
    return int(any(one.status == "failed" for one in recorder.results.measurements))


if __name__ == "__main__":
    sys.exit(main())
