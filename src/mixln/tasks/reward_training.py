"""Training a reward model with TRL's `RewardTrainer`, from pairs that are in tokens already.

The loss of a pair is that of Bradley and Terry (1952), -log sigmoid(r_chosen - r_rejected), as in InstructGPT (Ouyang
et al. 2022). What TRL does by default and is not done here: pairs that are too long are left out without a word,
bfloat16 on every machine, losses that are NaN are left out of the log, telemetry is sent.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from mixln.data.preferences import EncodedPair
from mixln.device import default_device
from mixln.errors import InputError
from mixln.quiet import quiet_transformers
from mixln.storage import disk_errors, put_on_disk, write_file
from mixln.tasks.reward_config import RewardConfig
from mixln.training import Precision, ReportStep, TrainingDivergedError, TrainingInterrupted
from mixln.training.callbacks.metrics import METRICS_FILE
from mixln.training.interrupt import Interruption, deferred_interrupt

CHECKPOINTS_FOLDER = "checkpoints"
_PREFIX = "checkpoint-"
_WHOLE_FILE = "whole.json"
"""In a checkpoint that is written to its end: a kill leaves one without it."""

_WARMUP = 0.1


def require_trl() -> None:
    """Make sure that TRL is installed.

    Raises:
        InputError: it is not.
    """
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise InputError("a reward model is trained by TRL, which is not installed: pip install 'mixln[reward]'") from (
            error
        )


def newest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """Return the newest whole checkpoint of a run and its step; None: there is none."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob(f"{CHECKPOINTS_FOLDER}/{_PREFIX}*/{_WHOLE_FILE}"):
        step = path.parent.name.removeprefix(_PREFIX)
        if step.isdecimal():
            found.append((int(step), path.parent))
    if not found:
        return None
    step, path = max(found)
    return path, step


def train_reward_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[EncodedPair],
    config: RewardConfig,
    folder: Path,
    precision: Precision,
    report_step: ReportStep | None = None,
) -> None:
    """Train a classifier with one score, in place.

    Args:
        model: with a padding token that is not the end token.
        tokenizer: of the model.
        pairs: to learn.
        config: how.
        folder: of the run; checkpoints lie in it, and an interrupted run goes on from the newest.
        precision: to compute in; weights are float32.
        report_step: progress.

    Raises:
        InputError: the folder cannot be written.
        TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint was written.
        TrainingDivergedError: the loss is no number any more.
    """
    steps = config.steps(len(pairs))
    found = newest_checkpoint(folder)
    with (
        warnings.catch_warnings(action="ignore", category=FutureWarning),  # names that TRL itself gives to transformers
        disk_errors(f"{folder} cannot be written", "Make room, and run the same command again"),
        quiet_transformers(),
        deferred_interrupt() as interruption,
    ):
        trainer = _make_trainer(model, tokenizer, pairs, config, steps, folder, precision)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Watch(interruption, folder, report_step))
        trainer.train(resume_from_checkpoint=None if found is None else str(found[0]))
        step = trainer.state.global_step
    if interruption.signal_number and step < steps:
        raise TrainingInterrupted(interruption.signal_number, step)
    lines = [json.dumps({"step": one["step"], **one}) for one in trainer.state.log_history if "loss" in one]
    write_file(folder / METRICS_FILE, "".join(f"{line}\n" for line in lines))


def _make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[EncodedPair],
    config: RewardConfig,
    steps: int,
    folder: Path,
    precision: Precision,
) -> Any:
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig as TrainerConfig
    from trl.trainer.reward_trainer import RewardTrainer

    class Trainer(RewardTrainer):
        """Without what leaves this machine, and without a card of the model in every checkpoint."""

        def _send_telemetry(self) -> None:
            """Send nothing."""

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Write nothing."""

    rows = config.micro_batch_size or config.batch_size
    device = default_device()
    arguments = TrainerConfig(
        output_dir=str(folder / CHECKPOINTS_FOLDER),
        max_steps=steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=config.batch_size // rows,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(_WARMUP * steps),
        center_rewards_coefficient=config.center or None,
        max_length=None,  # longer pairs have been counted and left out
        disable_dropout=True,
        gradient_checkpointing=False,
        bf16=precision.autocast_dtype is not None,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps",
        save_steps=config.checkpoint_every or max(1, math.ceil(steps / 10)),
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs of one process would share it by DataParallel
    rows_of_tokens = {
        "chosen_ids": [pair.chosen.tolist() for pair in pairs],
        "rejected_ids": [pair.rejected.tolist() for pair in pairs],
    }
    return Trainer(model, args=arguments, train_dataset=Dataset.from_dict(rows_of_tokens), processing_class=tokenizer)


class _Watch(TrainerCallback):
    """Marks whole checkpoints, stops when it is asked to or the loss is no number, and shows how far it is."""

    def __init__(self, interruption: Interruption, folder: Path, report_step: ReportStep | None) -> None:
        self._interruption, self._folder, self._report = interruption, folder, report_step
        self._tokens, self._time = 0.0, time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, state
        if self._interruption.signal_number:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del control
        checkpoint = Path(args.output_dir) / f"{_PREFIX}{state.global_step}"
        put_on_disk(checkpoint)
        write_file(checkpoint / _WHOLE_FILE, json.dumps({"step": state.global_step}) + "\n")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        del args, control
        if logs is None or "loss" not in logs:
            return
        loss, step = float(logs["loss"]), state.global_step
        if not math.isfinite(loss):
            found = newest_checkpoint(self._folder)
            kept = "no checkpoint is kept" if found is None else f"the checkpoint of step {found[1]} is kept"
            raise TrainingDivergedError(
                f"the loss is {loss} at step {step}; {kept}. Lower the learning rate, in another folder"
            )
        if self._report is not None:
            tokens, now = float(logs.get("num_tokens", 0)), time.perf_counter()
            speed = max(0.0, tokens - self._tokens) / max(now - self._time, 1e-9)
            self._tokens, self._time = tokens, now
            self._report(step, loss, speed)
