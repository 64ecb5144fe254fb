"""Training a reward model with TRL's `RewardTrainer`, from pairs that are in tokens already.

The loss of a pair is that of Bradley and Terry (1952), -log sigmoid(r_chosen - r_rejected), as in InstructGPT (Ouyang
et al. 2022). What TRL does by default and is not done here: pairs that are too long are left out without a word,
bfloat16 on every machine, losses that are NaN are left out of the log, telemetry is sent.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixln.data.preferences import EncodedPair
from mixln.device import default_device
from mixln.storage import write_file
from mixln.tasks.reward_config import RewardConfig
from mixln.tasks.trl_runs import CHECKPOINTS_FOLDER, SHARED_ARGUMENTS, quiet_trainer, run_trainer
from mixln.training import Precision, ReportStep
from mixln.training.callbacks.metrics import METRICS_FILE

_WARMUP = 0.1


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
    clock = _Clock()

    def report(logs: Mapping[str, Any], step: int) -> None:
        if report_step is not None:
            report_step(step, float(logs["loss"]), clock.rate(float(logs.get("num_tokens", 0))))

    trainer = run_trainer(
        lambda: _make_trainer(model, tokenizer, pairs, config, steps, folder, precision), folder, report
    )
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
        warmup_steps=min(math.ceil(_WARMUP * steps), steps - 1),  # its first is at rate 0: not all may be warmup
        center_rewards_coefficient=config.center or None,
        max_length=None,  # longer pairs have been counted and left out
        disable_dropout=True,
        bf16=precision.autocast_dtype is not None,
        seed=config.seed,
        data_seed=config.seed,
        save_steps=config.checkpoint_every or max(1, math.ceil(steps / 10)),
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        **SHARED_ARGUMENTS,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs of one process would share it by DataParallel
    rows_of_tokens = {
        "chosen_ids": [pair.chosen.tolist() for pair in pairs],
        "rejected_ids": [pair.rejected.tolist() for pair in pairs],
    }
    rows_of_pairs = Dataset.from_dict(rows_of_tokens)
    return quiet_trainer(RewardTrainer)(model, args=arguments, train_dataset=rows_of_pairs, processing_class=tokenizer)


class _Clock:
    """How fast a count grows, from one call to the next."""

    def __init__(self) -> None:
        self._count, self._time = 0.0, time.perf_counter()

    def rate(self, count: float) -> float:
        """Return the growth in a second."""
        now = time.perf_counter()
        speed = max(0.0, count - self._count) / max(now - self._time, 1e-9)
        self._count, self._time = count, now
        return speed
