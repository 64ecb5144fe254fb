"""What has been found so far, written to a file with every new number."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.prediction import Prediction
from benchmarks.measure import Measurement
from mixln.storage import write_file


@dataclass
class Results:
    """All of it.

    Attributes:
        command: that makes it again.
        machine: processor, versions and commit.
        device: name, kind (cuda, cpu), memory in bytes, number of GPUs, and which of `mixln estimate` it is.
        budget_seconds: that it may take.
        toy: whether the models are toys, whose numbers say nothing.
        peak: operations per second by shape of matrix multiplication, before anything else was run.
        measurements: of every contender and turn.
        predictions: by label of a measurement.
        seconds: that each part took.
        resume: of the run that was killed.
        diagnosis: of a model.
        left_out: a sentence for everything that was not measured.
    """

    command: str
    machine: dict[str, Any]
    budget_seconds: float
    toy: bool
    device: dict[str, Any] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    predictions: dict[str, Prediction] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    resume: dict[str, Any] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self), indent=1) + "\n"


class Recorder:
    """Keeps results and their files, and tells a person what happens.

    Args:
        results: to be filled.
        path: of the JSON file; the table in Markdown stands beside it.
        render: makes the table.
        say: tells a line.
    """

    def __init__(
        self, results: Results, path: Path, render: Callable[[Results], str], say: Callable[[str], None]
    ) -> None:
        self.results = results
        self.path = path
        self.table_path = path.with_suffix(".md")
        self._render = render
        self._say = say
        self._started = time.monotonic()

    def say(self, line: str) -> None:
        """Tell a line, with the time."""
        self._say(f"{time.monotonic() - self._started:5.0f} s  {line}")

    def save(self) -> None:
        """Write both files.

        Raises:
            InputError: they cannot be written.
        """
        write_file(self.path, self.results.to_json())
        write_file(self.table_path, self._render(self.results))

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement."""
        self.results.measurements.append(measurement)
        self.save()

    def leave_out(self, sentence: str) -> None:
        """Keep why something is not there."""
        self.results.left_out.append(sentence)
        self.say(f"left out: {sentence}")
        self.save()
