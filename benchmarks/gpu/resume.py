"""A run that is killed and taken up again, beside one that is not: do both end in the same bits?"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.documents import load_documents
from benchmarks.gpu.processes import Process
from benchmarks.gpu.results import Recorder
from benchmarks.gpu.side_by_side import Place
from benchmarks.settings import Settings
from mixln.tasks import pretrain
from mixln.training.run_folder import MODEL_FOLDER
from mixln.training.saved_checkpoint import checkpoint_step, list_checkpoints

STEPS, CHECKPOINT_EVERY, KILLED_AFTER = 8, 3, 5
"""Checkpoints are written after steps 3 and 6; the numbers of step 5 are read before the second one."""

_WEIGHTS = Path(MODEL_FOLDER) / "model.safetensors"


@dataclass(frozen=True)
class Run:
    """A run to its end, or until it kills itself.

    Attributes:
        settings: of the model and the batch.
        folder: of the run.
        killed_after: SIGKILL when the numbers of this step are read; None: it goes to its end.
    """

    settings: Settings
    folder: Path
    killed_after: int | None = None


def train_whole(_: Connection | None, run: Run) -> dict[str, Any]:
    """Train as `mixln train` does; return where it has begun, the losses of all steps, and a hash of the weights."""

    def report(step: int, *_: float) -> None:
        if step == run.killed_after:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(run.settings.threads)
    recipe = run.settings.recipe()
    execution = replace(
        recipe.execution, checkpoint_every=CHECKPOINT_EVERY, asynchronous_checkpoints=False, trackers=()
    )
    recipe = replace(recipe, stop_step=STEPS, evaluate_every=STEPS, execution=execution)
    saved = [checkpoint_step(path) for path in list_checkpoints(run.folder)]
    pretrain(recipe, load_documents(run.settings), run.folder, report)
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [found["loss"] for line in lines if "loss" in (found := json.loads(line))]
    weights = (run.folder / _WEIGHTS).read_bytes()
    return {"begun_at": max(saved, default=0), "losses": losses, "sha256": hashlib.sha256(weights).hexdigest()}


def measure_resuming(settings: Settings, until: float, place: Place, recorder: Recorder) -> None:
    """Fill `results.resume`.

    If the two ends differ, the run that is not killed is made once more: whether the machine computes the same twice at
    all is then known too.
    """
    found = recorder.results.resume
    found |= {"size": settings.size, "steps": STEPS, "killed_after": KILLED_AFTER, "rows": settings.rows_per_step}
    whole, cut = (Run(settings, place.folder / f"run-{name}") for name in ("whole", "cut"))
    with ExitStack() as ending:

        def start(label: str, run: Run) -> Process:
            process = Process(label, train_whole, (run,), place.folder, place.environment)
            ending.callback(process.end)
            return process

        # beside each other: nobody measures their time
        uninterrupted, killed = start("whole run", whole), start("killed run", replace(cut, killed_after=KILLED_AFTER))
        message = killed.receive(until)
        if killed.signal != signal.SIGKILL:
            recorder.leave_out(f"kill and resume: the run that was to be killed: {message.get('message', 'was not')}")
            return
        recorder.say(f"killed after step {KILLED_AFTER}; goes on")
        resumed = start("resumed run", cut)
        messages = {"whole": uninterrupted.receive(until), "resumed": resumed.receive(until)}
        for name, message in messages.items():
            if message["status"] != "ok":
                recorder.leave_out(f"kill and resume: the {name} run: {message['message']}")
                return
            found[name] = message["values"]
        found["identical"] = _same(found["whole"], found["resumed"])
        recorder.say(f"kill and resume: {'the same bits' if found['identical'] else 'not the same bits'}")
        if not found["identical"]:
            found["largest_difference"] = _largest_difference(whole.folder, cut.folder)
            _repeat(start("repeated run", replace(whole, folder=place.folder / "run-again")), until, recorder)
    recorder.save()


def _repeat(process: Process, until: float, recorder: Recorder) -> None:
    message = process.receive(until)
    if message["status"] != "ok":
        recorder.leave_out(f"kill and resume: whether two whole runs are the same: {message['message']}")
        return
    found = recorder.results.resume
    found["repeated"] = message["values"]
    found["repeats_itself"] = _same(found["whole"], message["values"])


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("sha256", "losses"))


def _largest_difference(one: Path, other: Path) -> float:
    first, second = load_file(one / _WEIGHTS), load_file(other / _WEIGHTS)
    return max(float((first[name] - second[name]).abs().max()) for name in first)
