"""What runs of TRL's trainers share: whole checkpoints, Ctrl-C after the step, losses that are numbers, nothing sent.

transformers writes a checkpoint file by file, and takes the newest folder for the newest checkpoint, also if a kill has
torn it. It replaces a loss that is NaN by the one before in its log. TRL tells the hub which trainer and GPU are used.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from mixln.device import num_processes
from mixln.errors import InputError
from mixln.manifest import read_manifest, write_manifest
from mixln.quiet import quiet_transformers
from mixln.records import read_json
from mixln.storage import disk_errors, put_on_disk, write_file
from mixln.training import MODEL_FOLDER, TrainingDivergedError, TrainingInterrupted, differences
from mixln.training.callbacks.metrics import METRICS_FILE
from mixln.training.interrupt import Interruption, deferred_interrupt

CHECKPOINTS_FOLDER = "checkpoints"
_PREFIX = "checkpoint-"

SHARED_ARGUMENTS: Mapping[str, Any] = {
    "gradient_checkpointing": False,
    "save_strategy": "steps",
    "save_total_limit": 2,  # the one before is whole while the newest is written
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "disable_tqdm": True,
}
"""Arguments of every trainer of TRL here."""


def require_trl(what: str) -> None:
    """Make sure that TRL is installed, and that torchrun has not started this.

    Args:
        what: needs it, for the message.

    Raises:
        InputError: it is not, or has.
    """
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise InputError(f"{what} is trained by TRL, which is not installed: pip install 'mixln[reward]'") from error
    if num_processes() > 1:
        raise InputError("this command works in one process: start it without torchrun")


def claim_run(folder: Path, file: str, identity: Mapping[str, Any]) -> None:
    """Make sure that the run in a folder is this one. Whoever calls this holds the folder.

    A run that has neither a model nor a whole checkpoint has made nothing, and gives way to another one: so a mistake
    that ended it, such as a reward that raises an error, can be corrected in the same folder.

    Args:
        folder: of the run.
        file: in the folder, that says of which run it is; it is written if need be.
        identity: all that the result depends on.

    Raises:
        InputError: the folder holds another run.
    """
    path, wanted = folder / file, json.loads(json.dumps(identity))
    if not path.exists():
        if there := [name for name in (MODEL_FOLDER, CHECKPOINTS_FOLDER, METRICS_FILE) if (folder / name).exists()]:
            raise InputError(f"{folder} holds {there[0]}, but no {file} that says of which run. Choose another folder")
    elif (folder / MODEL_FOLDER).exists() or newest_checkpoint(folder) is not None:
        if changes := list(differences(read_json(path), wanted)):
            raise InputError(f"{folder} holds another run ({'; '.join(changes)}). Choose another folder")
        return
    write_file(path, json.dumps(wanted, indent=2) + "\n")


def newest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """Return the newest whole checkpoint of a run and its step; None: there is none."""
    for path in sorted(folder.glob(f"{CHECKPOINTS_FOLDER}/{_PREFIX}*"), key=_step_of, reverse=True):
        try:
            if _step_of(path) >= 0 and read_manifest(path) is not None:
                return path, _step_of(path)
        except ValueError:  # torn by a kill; it goes when the trainer saves again
            continue
    return None


def _step_of(path: Path) -> int:
    step = path.name.removeprefix(_PREFIX)
    return int(step) if step.isdecimal() else -1


def describe_kept_checkpoint(folder: Path) -> str:
    """Return in words which checkpoint of a run is kept."""
    found = newest_checkpoint(folder)
    if found is None:
        return f"there was no checkpoint yet in {folder}, so the same command begins anew"
    return f"the checkpoint of step {found[1]} is kept in {folder}. Run the same command again to go on"


def quiet_trainer(trainer: Any) -> Any:
    """Return a class of TRL's trainers that sends nothing, and writes no card of the model into each checkpoint."""

    class Trainer(trainer):
        def _send_telemetry(self) -> None:
            """Send nothing."""

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Write nothing."""

    return Trainer


def run_trainer(
    make: Callable[[], Any],
    folder: Path,
    report: Callable[[Mapping[str, Any], int], object] | None = None,
    on_save: Callable[[Any], object] | None = None,
) -> Any:
    """Make a trainer, train, or go on from the newest whole checkpoint, and return the trainer.

    Args:
        make: returns the trainer, whose `output_dir` is `CHECKPOINTS_FOLDER` of the folder.
        folder: of the run.
        report: called with the numbers of each step, and the step.
        on_save: called with the trainer's state whenever a checkpoint is written.

    Raises:
        InputError: the folder cannot be written.
        TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint was written.
        TrainingDivergedError: the loss or the gradient is no number any more.
    """
    found = newest_checkpoint(folder)
    with _running(folder) as interruption:
        trainer = make()
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Watch(interruption, folder, report, on_save))
        trainer.train(resume_from_checkpoint=None if found is None else str(found[0]))
    # a run that goes on after its last step makes one more, at rate 0
    trainer.state.log_history = [one for one in trainer.state.log_history if one["step"] <= trainer.state.max_steps]
    if interruption.signal_number:  # after the last step too: more may follow, such as the next model
        kept = newest_checkpoint(folder)
        raise TrainingInterrupted(interruption.signal_number, None if kept is None else kept[1])
    return trainer


@contextmanager
def _running(folder: Path) -> Iterator[Interruption]:
    with (
        warnings.catch_warnings(action="ignore", category=FutureWarning),  # names that TRL itself gives to transformers
        disk_errors(f"{folder} cannot be written", "Make room, and run the same command again"),
        quiet_transformers(),
        deferred_interrupt() as interruption,
    ):
        yield interruption


class _Watch(TrainerCallback):
    """Marks whole checkpoints, stops when it is asked to or a loss is no number, and reports each step."""

    def __init__(
        self,
        interruption: Interruption,
        folder: Path,
        report: Callable[[Mapping[str, Any], int], object] | None,
        on_save: Callable[[Any], object] | None,
    ) -> None:
        self._interruption, self._folder, self._report, self._on_save = interruption, folder, report, on_save

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, state
        if self._interruption.signal_number:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del control
        checkpoint = Path(args.output_dir) / f"{_PREFIX}{state.global_step}"
        if self._on_save is not None:
            self._on_save(state)
        write_manifest(checkpoint, {"step": state.global_step})
        put_on_disk(checkpoint)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        del args, control
        if logs is None or "loss" not in logs or state.global_step > state.max_steps:
            return
        for name in ("loss", "grad_norm"):
            if name in logs and not math.isfinite(float(logs[name])):
                found = newest_checkpoint(self._folder)
                kept = "no checkpoint is kept" if found is None else f"the checkpoint of step {found[1]} is kept"
                raise TrainingDivergedError(
                    f"the {name} is {float(logs[name])} at step {state.global_step}; {kept}. Lower the learning rate, "
                    "in another folder"
                )
        if self._report is not None:
            self._report(logs, state.global_step)
