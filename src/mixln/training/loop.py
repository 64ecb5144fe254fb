"""Training one model: the whole loop, to be read from top to bottom."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from mixln.announce import announce, format_count
from mixln.device import default_device, describe_device
from mixln.errors import InputError
from mixln.records import read_json
from mixln.result import Result, copy_folder
from mixln.storage import write_file
from mixln.training.callback import Callback, StepRecord, Verdict
from mixln.training.callbacks.metrics import ReportStep, read_metrics
from mixln.training.callbacks.trackers import check_trackers
from mixln.training.checkpoint import Checkpoints
from mixln.training.compilation import number_of_threads, undo_compilation
from mixln.training.decisions import decide_settings, run_precision
from mixln.training.distributed import Processes, check_batch, started_processes
from mixln.training.interrupt import TrainingInterrupted, deferred_interrupt
from mixln.training.memory import keep_freed_memory
from mixln.training.objective import Batch
from mixln.training.precision import Precision
from mixln.training.prefetch import Prefetcher
from mixln.training.run import TrainingRun, evaluate
from mixln.training.run_folder import MODEL_FOLDER, claimed_folder, fill_folder
from mixln.training.task import Task

RESULT_FILE = "task_result.json"


class TrainingWarning(UserWarning):
    """Something about a run that its owner should know, and that does not stop it."""


class TrainingDivergedError(RuntimeError):
    """The loss or the gradient went wrong, and the policy, or the number of faults, says to stop."""


@dataclass(frozen=True, repr=False)
class TrainedModel(Result):
    """The outcome of a run; its table has a row for each step, `save` copies the finished model.

    Attributes:
        folder: of the run.
        task: what was trained.
        validation: the task's evaluation; of a language model, the validation loss.
        train_weight: the weight of all batches.
        precision: of the run, and why.
        result: of the task, as JSON; None: it has none, or it is lost.
        in_memory: the model, unless it was sharded.
    """

    folder: Path
    task: Task
    validation: Any
    train_weight: int
    precision: Precision
    result: dict[str, Any] | None = None
    in_memory: Any = None

    @property
    def train_tokens(self) -> int:
        """The tokens predicted in training of a language model: without padding, without the first of each document."""
        return self.train_weight

    @property
    def model(self) -> Any:
        """The trained model, in evaluation mode; one that was sharded is loaded from the run's folder."""
        if self.in_memory is None:
            return self.task.load(self.folder / MODEL_FOLDER, default_device())
        return self.in_memory

    def parts(self) -> list[str]:
        """What the model reaches, and where it is."""
        return [str(self.validation), f"precision: {self.precision}", f"model: {self.folder / MODEL_FOLDER}"]

    def rows(self) -> list[dict[str, float]]:
        """The metrics of every step, as in `metrics.jsonl`."""
        return read_metrics(self.folder)

    def _write(self, folder: Path) -> Path:
        return copy_folder(self.folder / MODEL_FOLDER, folder)


def train(
    task: Task,
    folder: str | Path,
    report_step: ReportStep | None = None,
    *,
    precision: Precision | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainedModel:
    """Train a model, alone or together with the other processes that torchrun has started.

    An interrupted run in the same folder is taken up where its last checkpoint is, and a finished one is only
    validated again.

    The folder gets `recipe.json`, `precision.json`, `metrics.jsonl`, what trackers write, `checkpoints/`,
    `faults.jsonl` if a step went wrong, and in the end `task_result.json`, if the task has a result, and `model/`. On
    Ctrl-C or SIGTERM the step is finished and a checkpoint written before TrainingInterrupted is raised.

    Args:
        task: what is trained, with its configuration.
        folder: of the run.
        report_step: progress.
        precision: decided for this run and others that are compared with it; None: decided here, if the configuration
            says auto (see `mixln.training.precision.decide_precision`).
        callbacks: new ones, beside those of the task; part of what may not change when the run is resumed.

    Warns:
        TrainingWarning: the configuration is outside what is known to be stable; a step went wrong and is passed over.

    Raises:
        InputError: the folder holds another run, or another process is at it, or it cannot be written; the batch does
            not fit the number of processes.
        TrainingDivergedError: a step went wrong, and the policy is to stop.
        TrainingInterrupted: see above.
    """
    config, folder = task.config, Path(folder)
    check_trackers(config.execution.trackers)
    keep_freed_memory()
    with started_processes(config.execution) as processes, ExitStack() as claim:
        check_batch(config.batch_size, processes)
        processes.on_main(lambda: claim.enter_context(claimed_folder(folder, task, callbacks)))
        if processes.from_main((folder / MODEL_FOLDER).exists()):
            return _finished_run(task, folder, processes, run_precision(task, folder, processes, None, precision))
        if processes.is_main:
            for warning in task.warnings():
                warnings.warn(warning, TrainingWarning, stacklevel=2)
        with closing(Checkpoints(folder, processes, config.execution, task.describe)) as checkpoints:
            newest = checkpoints.newest()
            decided = run_precision(task, folder, processes, newest, precision)
            slots = config.last_step * config.batch_size * task.positions
            settings = decide_settings(config.execution, slots, processes, newest, decided)
            with number_of_threads(settings.threads):
                run = TrainingRun(task, folder, processes, settings, callbacks, report_step)
                if newest is None:
                    run.begin()
                else:
                    run.restore(checkpoints, newest)
                parameters = sum(parameter.numel() for parameter in run.model.parameters())
                announce(
                    ("size", format_count(parameters, "parameters")),
                    ("device", describe_device(processes.device, processes.count)),
                    ("precision", decided),
                    ("compiled", "yes" if settings.compiled else "no"),
                    ("going on", None if newest is None else f"from step {run.step} of {config.last_step}"),
                )
                return _finish(run, checkpoints, _train(run, checkpoints))


def _train(run: TrainingRun, checkpoints: Checkpoints) -> list[dict[str, Any]]:
    """Make all steps that are left, and return the results of the callbacks."""
    config, processes = run.config, run.processes
    # on a GPU the numbers of a step are read one step later, so that the GPU never waits for this process
    waits = processes.device.type != "cuda" or any(callback.needs_loss for callback in run.callbacks)
    lag = 0 if waits else 1

    def load(step: int) -> tuple[Batch, int]:
        batch = run.batch(step)
        return batch, run.task.weight(batch)  # counted on the CPU, where nobody has to wait for it

    with (
        deferred_interrupt() as interruption,
        Prefetcher(load, processes.device) as batches,
        run.running_callbacks(),
    ):
        unread: list[StepRecord] = []
        # numbers may be left to read here if the last step is left out
        while run.step < config.last_step or _judge(run, checkpoints, unread, keep=0):
            if any(callback.skips(run.step + 1) for callback in run.callbacks):
                run.step += 1
                continue
            started, waited_before = time.perf_counter(), batches.waited_seconds
            record = run.make_step(*batches.get(run.step))
            record.values["data_seconds"] = batches.waited_seconds - waited_before
            record.values["seconds"] = time.perf_counter() - started
            unread.append(record)
            for callback in run.callbacks:
                callback.end_step(run, record)

            if _judge(run, checkpoints, unread, keep=0 if record.urgent else lag):
                continue
            wanted = any(callback.wants_checkpoint() for callback in run.callbacks)
            signal_number, wanted = processes.largest(interruption.signal_number, wanted)
            due = wanted or run.step % config.checkpoint_every == 0
            if signal_number or (due and run.step < config.last_step):
                if _judge(run, checkpoints, unread, keep=0) and not signal_number:
                    continue
                run.save(checkpoints)
            if signal_number:
                checkpoints.wait()
                raise TrainingInterrupted(signal_number, run.step)
            checkpoints.check()
        run.validation.of(run)  # for the first time if the last step is left out
        if verdict := run.validation.verdict(run.step):
            _heed(run, checkpoints, run.validation, verdict, last=None)
        return [callback.result() for callback in run.callbacks]


def _judge(run: TrainingRun, checkpoints: Checkpoints, unread: list[StepRecord], *, keep: int) -> bool:
    """Show the callbacks the numbers of all but the last `keep` steps; return whether the run has gone back."""
    while len(unread) > keep:
        record = unread.pop(0)
        verdicts = [(number, verdict) for number, one in enumerate(run.callbacks) if (verdict := one.judge(record))]
        for number, verdict in run.processes.first_of_any(verdicts):
            if _heed(run, checkpoints, run.callbacks[number], verdict, last=None if unread else record):
                unread.clear()
                return True
    return False


def _heed(
    run: TrainingRun, checkpoints: Checkpoints, callback: Callback, verdict: Verdict, *, last: StepRecord | None
) -> bool:
    """Do what a callback says of a step, and return whether the run has gone back.

    Args:
        run: which.
        checkpoints: of the run.
        callback: whose verdict it is.
        verdict: see there.
        last: the record of the step, if it is the last that was made.
    """
    reason, action = callback.explain(verdict), verdict.action
    if action == "go_back":
        checkpoints.wait()
        saved = checkpoints.go_back(verdict.before)
        if saved is not None or checkpoints.newest() is None:
            step = 0 if saved is None else int(saved.progress["step"])
            _warn(run, f"{reason}: going back to step {step}")
            run.restore(checkpoints, saved, rolled_back=True)
            callback.learn(verdict)
            return True
        reason += f"; but no checkpoint of step {verdict.before} or earlier is left to go back to"
    if action in ("stop", "go_back"):
        callback.learn(replace(verdict, action="stop"))
        if last is not None and verdict.saved != "nothing":
            if verdict.saved == "before":
                run.take_back(last)
            checkpoints.wait()
            newest = checkpoints.newest()
            # one of this step is not to be put at risk
            if newest is None or int(newest.progress["step"]) != run.step:
                run.save(checkpoints)
        checkpoints.wait()
        advice = f". {verdict.advice}" if verdict.advice else ""
        raise TrainingDivergedError(f"{reason}, in {run.folder}{advice}")
    _warn(run, f"{reason}: {'going on' if action == 'go_on' else action}")
    return False


def _warn(run: TrainingRun, message: str) -> None:
    if run.processes.is_main:
        warnings.warn(message, TrainingWarning, stacklevel=2)


def _finish(run: TrainingRun, checkpoints: Checkpoints, results: list[dict[str, Any]]) -> TrainedModel:
    """Save the model, which ends the run.

    Raises:
        ValueError: two results have the same name.
    """
    processes, task, folder = run.processes, run.task, run.folder
    checkpoints.wait()
    if run.settings.compiled:
        undo_compilation(run.objective)
    result: dict[str, Any] = {}
    for own in (*results, task.finish(run.objective) or {}):
        if twice := result.keys() & own.keys():
            raise ValueError(f"two results are called {min(twice)!r}: of two callbacks, or of one and of the task")
        result |= own
    is_sharded = processes.mesh is not None and run.config.execution.strategy == "fsdp"
    # the whole of a sharded model comes together on the CPU of the main process only
    whole = StateDictOptions(full_state_dict=is_sharded, cpu_offload=is_sharded)
    weights = get_model_state_dict(run.model, options=whole)
    if processes.is_main:
        if result:  # before the model is saved, so that wherever there is one, there is this
            write_file(folder / RESULT_FILE, json.dumps(result) + "\n")
        remedy = "Fix that, and run the same command again: it goes on from the last checkpoint"
        fill_folder(folder / MODEL_FOLDER, lambda temporary: task.save(run.model, weights, temporary), remedy)
    processes.wait_for_all()
    checkpoints.remove_all_but_permanent()
    in_memory = None if is_sharded else run.model.eval()
    validation, precision = run.validation.of(run), run.settings.precision
    return TrainedModel(folder, task, validation, run.weight, precision, result or None, in_memory)


def _finished_run(task: Task, folder: Path, processes: Processes, precision: Precision) -> TrainedModel:
    lines = read_metrics(folder)
    weight = lines[-1].get(task.unit) if lines else None
    if type(weight) is not int:
        raise InputError(f"{folder} has a finished model, but its metrics are gone. Delete it to train this run anew")
    model = task.load(folder / MODEL_FOLDER, processes.device)
    announce(("finished", f"already, at step {lines[-1]['step']}; nothing to do but to validate it: {folder}"))
    objective = task.objective(model, processes.device, compiled=False)
    validation = evaluate(task, objective, Processes(processes.device), precision.autocast_dtype)
    try:
        result = read_json(folder / RESULT_FILE)
    except (OSError, InputError):
        result = None
    return TrainedModel(
        folder, task, validation, weight, precision, result if isinstance(result, dict) else None, model
    )
