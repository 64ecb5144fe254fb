"""One measurement in its own process: `python -m benchmarks.measure CONTENDER SETTINGS OUTPUT`, and how it is started.

The settings are JSON text; the output is a file that holds the measurement as JSON. Nothing that a contender prints
matters.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.settings import Settings
from mixln.storage import write_file

_ROOT = Path(__file__).resolve().parent.parent
_MODULE = "benchmarks.measure"
_LONGEST_MESSAGE = 600

Status = Literal["ok", "failed", "not installed"]


@dataclass(frozen=True)
class Measurement:
    """What one process found.

    Attributes:
        label: what is compared: the contender's name, or what its settings are about.
        contender: its name.
        round: the number of the round, from 0.
        settings: of this measurement, as nested plain values.
        status: whether there are values.
        message: why there are none.
        values: for a contender: step_seconds, processor_seconds, predicted, slots, padding (a list each, warm-up
            included), peak_bytes, reserved_bytes, peak_was_reset, loss, parameters, threads, device; for the matrix
            peak: operations per second by shape.
        load_before: the machine's load average of the last minute when the process started.
    """

    label: str
    contender: str
    round: int
    settings: dict[str, Any]
    status: Status
    message: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    load_before: float = 0.0


@dataclass(frozen=True)
class Task:
    """A measurement to be made in every round."""

    label: str
    contender: str
    settings: Settings


def measure(task: Task, number: int, timeout: float) -> Measurement:
    """Start the process of one measurement and wait for what it finds; it is ended if this one is interrupted."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        output, log = Path(folder) / "measurement.json", Path(folder) / "log.txt"
        arguments = [task.contender, task.settings.to_json(), str(output)]
        problem = _run_process(arguments, task.settings.threads, log, timeout)
        if output.exists():
            found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        else:
            found = {"status": "failed", "message": problem or last_lines(log)}
    return Measurement(task.label, task.contender, number, asdict(task.settings), load_before=load, **found)


def _run_process(arguments: list[str], threads: int, log: Path, timeout: float) -> str:
    """Run this module; return what went wrong with the process, if it is known."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, *arguments],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the parent, which ends this one
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"not done after {timeout:.0f} seconds (--timeout)"
        finally:
            _end(process)
    return f"killed by signal {-process.returncode}" if process.returncode < 0 else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process, if it is still there, and all that it has started (compilers)."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_lines(log: Path, count: int = 5) -> str:
    """Return the last lines of what a process has printed, in one."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(lines[-count:]) or "no message"


def status_of(values: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the status, the message and the values of a measurement that is made here."""
    try:
        return {"status": "ok", "values": values()}
    except ImportError as error:
        return {"status": "not installed", "message": str(error)}
    except Exception as error:  # whatever it is: the other contenders go on
        words = " ".join(str(error).split())
        return {"status": "failed", "message": f"{type(error).__name__}: {words[:_LONGEST_MESSAGE]}"}


def _values(contender: str, settings: Settings) -> dict[str, Any]:
    import torch

    from benchmarks.contenders import MATRIX_PEAK, find_contender
    from benchmarks.documents import load_documents
    from benchmarks.matrix_peak import matrix_peak
    from benchmarks.meter import Meter

    torch.set_num_threads(settings.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if contender == MATRIX_PEAK:
        return matrix_peak(settings, device)
    run = find_contender(contender)
    data = load_documents(settings)
    meter = Meter(device)
    started = time.perf_counter()
    outcome = run(settings, data, meter)
    return {
        "step_seconds": meter.step_seconds,
        "processor_seconds": meter.processor_seconds,
        "predicted": [counts.predicted for counts in meter.counts],
        "slots": [counts.slots for counts in meter.counts],
        "padding": [counts.padding for counts in meter.counts],
        "peak_bytes": meter.peak_bytes(),
        "reserved_bytes": meter.reserved_bytes(),
        "peak_was_reset": meter.peak_was_reset,
        "total_seconds": time.perf_counter() - started,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **asdict(outcome),
    }


def main() -> int:
    """Measure what the command line asks for."""
    contender, settings, output = sys.argv[1:]
    found = status_of(lambda: _values(contender, Settings.from_json(settings)))
    write_file(Path(output), json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
