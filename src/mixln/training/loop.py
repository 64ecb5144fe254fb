"""Training one model: the whole loop, to be read from top to bottom."""

from __future__ import annotations

import math
import time
import warnings
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from mixln.data import Prefetcher, PreparedData
from mixln.depth import EvaluationLoss
from mixln.device import default_device
from mixln.errors import InputError
from mixln.training.checkpoint import Checkpoints, SavedCheckpoint
from mixln.training.compilation import decide_compilation, number_of_threads, require_compiler, undo_compilation
from mixln.training.config import Recipe
from mixln.training.distributed import Processes, check_batch, started_processes
from mixln.training.faults import Fault, TrainingDivergedError
from mixln.training.interrupt import TrainingInterrupted, deferred_interrupt
from mixln.training.intervention import Verdict
from mixln.training.memory import keep_freed_memory
from mixln.training.metrics import MetricsLog, read_metrics
from mixln.training.model_source import FreshModel, ModelSource
from mixln.training.run import Settings, StepRecord, TrainingRun
from mixln.training.run_folder import MODEL_FOLDER, claimed_folder, load_model, save_model
from mixln.training.run_log import ReportStep, RunLog
from mixln.training.trackers import check_trackers
from mixln.training.validation import validate

_ADVICE = "Lower the learning rate or lengthen the warmup, in another folder; Post-LN layers need a long one"


class TrainingWarning(UserWarning):
    """Something about a run that its owner should know, and that does not stop it."""


@dataclass(frozen=True)
class TrainedModel:
    """The outcome of a run.

    Attributes:
        folder: of the run.
        validation: the validation loss.
        train_tokens: the tokens predicted in training: without padding, without the first of each document.
        in_memory: the model, unless it was sharded.
    """

    folder: Path
    validation: EvaluationLoss
    train_tokens: int
    in_memory: PreTrainedModel | None = None

    @property
    def model(self) -> PreTrainedModel:
        """The trained model, in evaluation mode; one that was sharded is loaded from the run's folder."""
        return self.in_memory or load_model(self.folder / MODEL_FOLDER, default_device())


def train(
    recipe: Recipe,
    data: PreparedData,
    folder: Path,
    report_step: ReportStep | None = None,
    *,
    source: ModelSource | None = None,
) -> TrainedModel:
    """Train a model by a recipe, alone or together with the other processes that torchrun has started.

    An interrupted run in the same folder is taken up where its last checkpoint is, and a finished one is only
    validated again.

    The folder gets `recipe.json`, `metrics.jsonl`, what trackers write, `checkpoints/`, `faults.jsonl` if a step went
    wrong, and in the end `model/`, a Hugging Face folder with the tokenizer. On Ctrl-C or SIGTERM the step is finished
    and a checkpoint written before TrainingInterrupted is raised.

    Args:
        recipe: of the run.
        data: to train and validate on.
        folder: of the run.
        report_step: progress.
        source: of the model; None: `recipe.model`, its weights drawn.

    Warns:
        TrainingWarning: the recipe is outside what is known to be stable; a step went wrong and is passed over.

    Raises:
        InputError: the folder holds a run of another recipe, or another process is at it, or it cannot be written; the
            recipe does not fit the number of processes.
        TrainingDivergedError: a step went wrong, and the recipe says to stop.
        TrainingInterrupted: see above.
    """
    recipe.check()
    source = source or FreshModel(recipe, data.tokenizer)
    check_trackers(recipe.execution.trackers)
    keep_freed_memory()
    with started_processes(recipe.execution) as processes, ExitStack() as claim:
        check_batch(recipe, processes)
        if processes.is_main:
            claim.enter_context(claimed_folder(folder, recipe, data.fingerprint, source.describe()))
        processes.wait_for_all()
        if processes.from_main((folder / MODEL_FOLDER).exists()):
            return _finished_run(recipe, data, folder, processes, source)
        if processes.is_main:
            for warning in source.warnings():
                warnings.warn(warning, TrainingWarning, stacklevel=2)
        with closing(Checkpoints(folder, processes, recipe.execution, data.tokenizer)) as checkpoints:
            newest = checkpoints.newest()
            settings = decide_settings(recipe, processes, newest)
            with number_of_threads(settings.threads):
                run = TrainingRun(recipe, data, folder, processes, settings, source)
                if newest is None:
                    run.begin()
                else:
                    run.restore(checkpoints, newest)
                validation = _train(run, checkpoints, report_step)
                return _finish(run, checkpoints, validation or run.validate())


def decide_settings(recipe: Recipe, processes: Processes, newest: SavedCheckpoint | None) -> Settings:
    """Return what is decided once: by the recipe and this machine, or, for a run that goes on, by its checkpoint.

    Raises:
        InputError: the model is to be compiled, and this machine has no compiler.
    """
    fresh = Settings(decide_compilation(recipe, processes.device), torch.get_num_threads())
    if newest is None:
        return fresh
    recorded = Settings(**newest.progress["settings"])
    if recorded.compiled:
        require_compiler(processes.device, f"the run in {newest.path.parent.parent} began with a compiled model")
    # on another number of processes the sums are others anyway, and each has another share of the machine
    return recorded if newest.progress["processes"] == processes.count else replace(recorded, threads=fresh.threads)


def _train(run: TrainingRun, checkpoints: Checkpoints, report_step: ReportStep | None) -> EvaluationLoss | None:
    """Make all steps that are left, and return the validation loss after the last."""
    recipe, processes = run.recipe, run.processes
    evaluate_every = recipe.evaluate_every or max(1, recipe.last_step // 4)
    # on a GPU the numbers of a step are read one step later, so that the GPU never waits for this process
    lag = 1 if processes.device.type == "cuda" and not run.source.intervention.needs_loss else 0
    validation: EvaluationLoss | None = None
    with (
        deferred_interrupt() as interruption,
        Prefetcher(run.batch, processes.device) as batches,
        _open_log(run, report_step) as log,
    ):
        unread: list[StepRecord] = []
        while run.step < recipe.last_step:
            if run.step + 1 in run.watch.skipped_steps:
                run.step += 1
                validation = None  # if there is one, it is of an earlier step
                continue
            started, waited_before = time.perf_counter(), batches.waited_seconds
            record = run.make_step(batches.get(run.step))
            record.values["data_seconds"] = batches.waited_seconds - waited_before
            record.values["seconds"] = time.perf_counter() - started
            unread.append(record)

            evaluate = run.step % evaluate_every == 0 or run.step == recipe.last_step
            due = run.step % recipe.checkpoint_every == 0 or run.source.intervention.wants_checkpoint()
            save = due and run.step < recipe.last_step
            if evaluate:
                validation = run.validate()
                record.values["validation_loss"] = validation.mean
            if _read(run, checkpoints, log, unread, keep=0 if evaluate or save else lag):
                continue
            signal_number = processes.largest(interruption.signal_number)
            if signal_number:
                _read(run, checkpoints, log, unread, keep=0)
            if save or signal_number:
                log.flush()
                run.save(checkpoints)
            if signal_number:
                checkpoints.wait()
                raise TrainingInterrupted(signal_number)
            checkpoints.check()
    return validation


def _read(run: TrainingRun, checkpoints: Checkpoints, log: RunLog, unread: list[StepRecord], *, keep: int) -> bool:
    """Read the numbers of all but the last `keep` steps, act on what is wrong, and return whether the run went back."""
    while len(unread) > keep:
        record = unread.pop(0)
        fault = run.watch.judge(record.step, float(record.loss), float(record.gradient_norm), record.largest_norm)
        log.write(record)
        validation_loss = record.values.get("validation_loss", 0.0)
        loss = float(record.loss) if math.isfinite(validation_loss) else validation_loss
        # first, since it may know why a step went wrong, and what to do
        verdict = run.source.intervention.judge(record.step, loss)
        if verdict is not None:
            _heed(run, checkpoints, verdict)
            unread.clear()
            log.rewind(run.step)
            return True
        if fault is None and not math.isfinite(validation_loss):
            problem = f"the validation loss was {validation_loss} in step {record.step} of {run.folder}"
            # steps that are skipped leave the weights finite, so that the run may recover
            if run.recipe.faults.on_non_finite != "skip" or record.step == run.recipe.last_step:
                raise TrainingDivergedError(f"{problem}. {_ADVICE}")
            if run.processes.is_main:
                warnings.warn(f"{problem}: going on", TrainingWarning, stacklevel=2)
        if fault is None:
            continue
        explanation = run.explain(fault)
        if fault.action == "stop":
            if not unread:
                run.take_back(record, fault)
                _save_if_new(run, checkpoints)
            _stop(run, checkpoints, fault, explanation)
        if run.processes.is_main:
            warnings.warn(f"{explanation}: {fault.action.replace('_', ' ')}", TrainingWarning, stacklevel=2)
        if fault.action == "roll_back":
            unread.clear()
            run.watch.skipped_steps.add(fault.step)
            checkpoints.wait()
            run.restore(checkpoints, checkpoints.newest(), rolled_back=True)
            log.rewind(run.step)
            return True
    return False


def _heed(run: TrainingRun, checkpoints: Checkpoints, verdict: Verdict) -> None:
    """Take the run back as an intervention says, or end it."""
    checkpoints.wait()
    reason = verdict.reason
    saved = None
    if verdict.action == "roll_back":
        saved = checkpoints.go_back(verdict.before)
        if saved is None:
            reason += f"; but no checkpoint of step {verdict.before} or earlier is left to go back to"
    if saved is None:
        _save_if_new(run, checkpoints)
        checkpoints.wait()
        raise TrainingDivergedError(f"{reason}, in {run.folder}")
    if run.processes.is_main:
        warnings.warn(f"{reason}: going back to step {saved.progress['step']}", TrainingWarning, stacklevel=3)
    run.restore(checkpoints, saved, rolled_back=True)
    run.source.intervention.put_off()


def _open_log(run: TrainingRun, report_step: ReportStep | None) -> RunLog:
    if not run.processes.is_main:
        return RunLog(None, None)
    recipe = run.recipe
    metrics = MetricsLog(run.folder, run.step, recipe.execution.trackers, config=recipe.to_dict())
    return RunLog(metrics, report_step)


def _save_if_new(run: TrainingRun, checkpoints: Checkpoints) -> None:
    """Save the state, unless the newest checkpoint is of this step already: it is not to be put at risk."""
    checkpoints.wait()
    newest = checkpoints.newest()
    if newest is None or int(newest.progress["step"]) != run.step:
        run.save(checkpoints)


def _stop(run: TrainingRun, checkpoints: Checkpoints, fault: Fault, explanation: str) -> NoReturn:
    """Raise TrainingDivergedError when what has been saved is complete."""
    checkpoints.wait()
    raise TrainingDivergedError(
        f"{explanation}, of {run.folder}. {_ADVICE}. Or let another policy in the recipe's faults go on without this "
        "step"
        + (f" (there were more than faults.max_faults, {run.recipe.faults.max_faults}, already)" * fault.too_many)
    )


def _finish(run: TrainingRun, checkpoints: Checkpoints, validation: EvaluationLoss) -> TrainedModel:
    """Save the model, which ends the run."""
    processes, model = run.processes, run.model
    checkpoints.wait()
    undo_compilation(run.objective)
    run.objective.use_attention("sdpa")
    run.source.finish(model)
    is_sharded = processes.mesh is not None and run.recipe.execution.strategy == "fsdp"
    # the whole of a sharded model comes together on the CPU of the main process only
    whole = StateDictOptions(full_state_dict=is_sharded, cpu_offload=is_sharded)
    weights = get_model_state_dict(model, options=whole)
    if processes.is_main:
        mend = "Mend that, and run the same command again: it goes on from the last checkpoint"
        save_model(model, run.data.tokenizer, run.folder / MODEL_FOLDER, weights=weights, mend=mend)
    processes.wait_for_all()
    checkpoints.remove_all_but_permanent()
    return TrainedModel(run.folder, validation, run.tokens, None if is_sharded else model.eval())


def _finished_run(
    recipe: Recipe, data: PreparedData, folder: Path, processes: Processes, source: ModelSource
) -> TrainedModel:
    lines = read_metrics(folder)
    if not lines:
        raise InputError(f"{folder} has a finished model, but its metrics are gone. Delete it to train this run anew")
    model = load_model(folder / MODEL_FOLDER, processes.device)
    objective = source.wrap(model, "sdpa")
    alone = Processes(processes.device)
    validation = validate(objective, objective, recipe, data.validation, alone)
    return TrainedModel(folder, validation, int(lines[-1]["tokens"]), model)
