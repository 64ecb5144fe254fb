"""Fine-tuning beside TRL: `python -m benchmarks.fine_tuning_speed MODEL DATA`.

In interleaved rounds, the training of `mixln finetune` and TRL's `SFTTrainer` train the same model on the same packed
rows in the same order: the same batch, precision, optimiser and clipping, attention within each example, nothing
compiled, no activations computed anew (TRL's default does that, to save memory). The time of a step is from the end of
one step to the end of the next, loading of data included; the first steps do not count. Ratios are taken within a
round, and which goes first changes every round. The losses of the first step, which must agree, say that both compute
the same.

In favour of TRL: its rows are packed and in memory before the clock starts. What its `compute_loss` measures beside the
loss (entropy and accuracy of tokens, in every step) is a default of its own, and counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.analysis import Estimate, estimate
from benchmarks.machine import describe_machine, machine_line
from mixln.data import training_rows
from mixln.data.example_data import ExampleRequest
from mixln.errors import InputError
from mixln.models.load import load_config
from mixln.quiet import quiet_transformers
from mixln.records import encode
from mixln.storage import write_file
from mixln.studies.fine_tuned_model import FineTuningPlan, plan_fine_tuning
from mixln.studies.work_folder import precision_of_further_training
from mixln.tasks import FineTuning
from mixln.tasks.fine_tuning_config import FineTuningConfig
from mixln.training import Precision, train

MIXLN, TRL = "mixln", "trl"


@dataclass(frozen=True)
class Measured:
    """What one contender took in one round: seconds of each step but those of the warm-up, and the first loss."""

    step_seconds: list[float]
    first_loss: float


class _Marks:
    """The moments at which steps end."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def end_step(self) -> None:
        """A step ends now."""
        self._ends.append(time.perf_counter())

    def seconds(self, warm_up: int) -> list[float]:
        """The time of each step behind the warm-up, from the end of the one before."""
        return [after - before for before, after in zip(self._ends, self._ends[1:], strict=False)][warm_up - 1 :]


def run_mixln(plan: FineTuningPlan, precision: Precision, warm_up: int) -> Measured:
    """Fine-tune as `mixln finetune` does."""
    marks, losses = _Marks(), list[float]()

    def report(_step: int, loss: float, _rate: float) -> None:
        marks.end_step()
        losses.append(loss)

    with tempfile.TemporaryDirectory() as folder:
        task = FineTuning(plan.folder, plan.recipe, plan.data)
        train(task, Path(folder) / "run", report, precision=precision)
    return Measured(marks.seconds(warm_up), losses[0])


def run_trl(plan: FineTuningPlan, precision: Precision, warm_up: int) -> Measured:
    """Fine-tune by `SFTTrainer`, on the rows of `run_mixln`."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    recipe, rows = plan.recipe, plan.data.train
    order = [
        int(row)
        for step in range(recipe.steps)
        for row in training_rows(len(rows), step, recipe.batch_size, recipe.seed)
    ]
    batches = [rows.batch([row]) for row in order]
    marks = _Marks()

    class StepEnd(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.end_step()

    def collate(items: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        chosen = [batches[item["number"]] for item in items]
        targets = torch.cat([one.targets for one in chosen])
        return {
            "input_ids": torch.cat([one.input_ids for one in chosen]),
            "position_ids": torch.cat([one.position_ids for one in chosen]),
            "labels": targets,  # of which Trainer counts those that are learned; the loss takes what is shifted already
            "shift_labels": targets,
        }

    with tempfile.TemporaryDirectory() as folder, quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions have new names of arguments too
        optimizer = recipe.optimizer
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch_size,
            bf16=precision.autocast_dtype is torch.bfloat16,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            optim="adamw_torch_fused",
            learning_rate=optimizer.learning_rate,
            adam_beta1=optimizer.beta1,
            adam_beta2=optimizer.beta2,
            adam_epsilon=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
            max_grad_norm=optimizer.max_grad_norm,
            warmup_steps=recipe.warmup_steps or 0,
            seed=recipe.seed,
            max_length=None,
            packing=False,  # the rows are packed already
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            eval_strategy="no",
            disable_tqdm=True,
        )
        model = AutoModelForCausalLM.from_pretrained(plan.folder, dtype=torch.float32, attn_implementation="sdpa")
        trainer = _in_order(SFTTrainer)(
            model,
            arguments,
            train_dataset=Dataset.from_dict({"number": list(range(len(order)))}),
            data_collator=collate,
            processing_class=plan.data.tokenizer,
            callbacks=[StepEnd()],
        )
        trainer.train()
        first_loss = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    return Measured(marks.seconds(warm_up), float(first_loss))


def _in_order(trainer: Any) -> Any:
    """A trainer that takes its rows in their order, which is that of training already."""
    from torch.utils.data import SequentialSampler

    class InOrder(trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(train_dataset or self.train_dataset)

        def log(self, logs: dict[str, float], *_: Any, **__: Any) -> None:
            """Keep the log, and print nothing."""
            self.state.log_history.append({**logs, "step": self.state.global_step})

    return InOrder


CONTENDERS: dict[str, Callable[[FineTuningPlan, Precision, int], Measured]] = {MIXLN: run_mixln, TRL: run_trl}


def measure_rounds(plan: FineTuningPlan, precision: Precision, rounds: int, warm_up: int) -> list[dict[str, Measured]]:
    """Let both contenders train in every round, each first in every other round."""
    found: list[dict[str, Measured]] = []
    for number in range(rounds):
        names = list(CONTENDERS) if number % 2 else list(CONTENDERS)[::-1]
        found.append({name: CONTENDERS[name](plan, precision, warm_up) for name in names})
        times = ", ".join(f"{name} {median(one.step_seconds):.3f} s a step" for name, one in found[-1].items())
        print(f"round {number + 1}: {times}", file=sys.stderr, flush=True)
    return found


def times_as_fast(found: list[dict[str, Measured]]) -> Estimate:
    """How many times as fast mixln is: the ratio of the median times of a step, within each round."""
    return estimate([median(one[TRL].step_seconds) / median(one[MIXLN].step_seconds) for one in found])


def main(words: list[str] | None = None) -> int:
    """Print the ratio, and write every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or hub name of a causal language model")
    parser.add_argument("data", help="examples, as `mixln finetune` takes them")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of a step; default: 8")
    parser.add_argument("--sequence-length", type=int, default=None, help="tokens of a row; default: as finetune")
    parser.add_argument("--steps", type=int, default=12, help="measured steps of a round; default: 12")
    parser.add_argument("--warm-up-steps", type=int, default=2, help="steps before them; default: 2")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help="default: auto")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; default: 1")
    parser.add_argument("--output", default="out/benchmarks/fine-tuning.json", help="JSON file")
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    steps = given.steps + given.warm_up_steps
    config = FineTuningConfig(
        batch_size=given.batch_size,
        sequence_length=given.sequence_length,
        precision=given.precision,
        checkpoint_every=steps,
        too_long="drop",
    )
    try:
        plan = plan_fine_tuning(given.model, ExampleRequest([given.data], too_long="drop"), config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    plan = replace(plan, recipe=replace(plan.recipe, steps=steps))
    with tempfile.TemporaryDirectory() as folder:
        precision = precision_of_further_training(plan.recipe, load_config(str(plan.folder)), Path(folder))
    found = measure_rounds(plan, precision, given.rounds, given.warm_up_steps)
    ratio, losses = times_as_fast(found), [found[0][name].first_loss for name in CONTENDERS]
    rows = f"{given.batch_size} x {plan.recipe.data.sequence_length} tokens, {plan.data.train.filled:.0%} full"
    print(f"{machine_line()}, {given.threads} threads, {precision.name}, {rows}")
    print(
        f"mixln is {ratio.median:.2f} times as fast as TRL's SFTTrainer [{ratio.low:.2f} .. {ratio.high:.2f}] "
        f"({ratio.method}, {ratio.count} rounds); first loss {losses[0]:.4f} and {losses[1]:.4f}"
    )
    result = {"machine": describe_machine(), "rounds": [encode(one, "round") for one in found]}
    write_file(Path(given.output), json.dumps(result, indent=1) + "\n")
    if abs(losses[0] - losses[1]) > (1e-3 if precision.autocast_dtype is None else 2e-2):
        print("error: the losses of the first step differ, so both do not compute the same", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
