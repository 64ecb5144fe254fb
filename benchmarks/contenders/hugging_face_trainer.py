"""Hugging Face's `Trainer` with stock `LlamaForCausalLM`.

Which packing is the fair one? In transformers 5 the masks of every attention implementation are made from the position
ids when no attention mask is given and positions start anew within a row (`find_packed_sequence_indices` in
masking_utils.py): with "sdpa" too, on the processor too, attention then stays within each document, through a boolean
mask of shape (rows, 1, 256, 256). So `trainer-packed` computes the very function that mixln computes, on the same rows,
and is the baseline. (This needs `use_cache=False`, which Trainer sets: with a cache, positions that start anew are
passed over silently, and attention crosses documents.) `DataCollatorWithFlattening` would do the same on one row of
(rows * 256) tokens, for which "sdpa" computes all scores between documents and throws them away: quadratic in the
batch, made for flash attention; not used.

`trainer-crossing` is what transformers' run_clm.py does: no position ids, attention crosses documents, no mask is made.
It learns something else, but is the fastest that Trainer can be, so it is offered too.

The rows are cut, padded and in memory before the clock starts, which favours Trainer: published code tokenises and pads
while it trains.
"""

# accelerate is no dependency of the project
# pyright: reportMissingImports=false

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import accelerate  # noqa: F401  # Trainer needs it, and says so only when it is half built
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.contenders import Outcome
from benchmarks.documents import Row, TrainerRows, crossing_rows, packed_rows, padded_rows
from benchmarks.meter import Meter
from benchmarks.settings import SEQUENCE_LENGTH, Settings
from mixln.data import PreparedData
from mixln.tasks import Recipe
from mixln.training import learning_rate


class _Rows(Dataset[Row]):
    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


class _StepEnd(TrainerCallback):
    """Tells the meter whenever a step ends; the time since the one before includes the loading of data."""

    def __init__(self, meter: Meter, rows: TrainerRows) -> None:
        self._meter = meter
        self._rows = rows

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:  # noqa: ARG002
        self._meter.finish_step(self._rows.counts[state.global_step - 1])


class _RecipeTrainer(Trainer):
    """Trainer with the recipe's schedule, which keeps the losses of the micro-batches."""

    def __init__(self, recipe: Recipe, **settings: Any) -> None:
        super().__init__(**settings)
        self._recipe = recipe
        self.losses: list[Tensor] = []

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        recipe = self._recipe
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            cast(torch.optim.Optimizer, optimizer or self.optimizer),
            # called once more after the last step
            lambda step: (
                learning_rate(recipe.optimizer, recipe.steps, min(step + 1, num_training_steps))
                / recipe.optimizer.learning_rate
            ),
        )
        return self.lr_scheduler

    def compute_loss(self, *args: Any, **settings: Any) -> Any:
        loss = super().compute_loss(*args, **settings)
        self.losses.append(cast(Tensor, loss).detach())
        return loss


def run_padded(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """One document a row, padded."""
    return _run(settings, data, meter, padded_rows(data, settings))


def run_packed(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """Packed documents that do not see each other."""
    return _run(settings, data, meter, packed_rows(data, settings))


def run_packed_compiled(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """As `run_packed`, with `torch_compile=True`."""
    return _run(settings, data, meter, packed_rows(data, settings), torch_compile=True)


def run_crossing(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """Packed documents that see each other."""
    return _run(settings, data, meter, crossing_rows(data, settings))


def run_crossing_compiled(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """As `run_crossing`, with `torch_compile=True`."""
    return _run(settings, data, meter, crossing_rows(data, settings), torch_compile=True)


def _run(
    settings: Settings, data: PreparedData, meter: Meter, rows: TrainerRows, *, torch_compile: bool = False
) -> Outcome:
    recipe = settings.recipe()
    with tempfile.TemporaryDirectory() as folder:
        meter.begin()
        model = _build_model(recipe, data)
        trainer = _RecipeTrainer(
            recipe,
            model=model,
            args=_arguments(settings, recipe, Path(folder), meter.device, torch_compile=torch_compile),
            train_dataset=_Rows(rows.rows),
            data_collator=default_data_collator,
            callbacks=[_StepEnd(meter, rows)],
        )
        trainer.train()
    # each micro-batch's loss is divided by the tokens of the whole step
    loss = float(torch.stack(trainer.losses[-settings.accumulation :]).sum())
    return Outcome(loss, sum(parameter.numel() for parameter in model.parameters()))


def _build_model(recipe: Recipe, data: PreparedData) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    model = recipe.model
    config = LlamaConfig(
        vocab_size=len(data.tokenizer),
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads or model.num_attention_heads,
        max_position_embeddings=SEQUENCE_LENGTH,
        rms_norm_eps=model.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie_word_embeddings,
        initializer_range=model.initializer_range,
        use_cache=False,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa")


def _arguments(
    settings: Settings, recipe: Recipe, folder: Path, device: torch.device, *, torch_compile: bool
) -> TrainingArguments:
    optimizer = recipe.optimizer
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.total_steps,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.accumulation,
        bf16=settings.precision == "bfloat16",
        use_cpu=device.type == "cpu",
        torch_compile=torch_compile,
        # without weight decay, AdamW is the recipe's Adam
        optim="adamw_torch_fused",
        learning_rate=optimizer.learning_rate,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        seed=recipe.seed,
        train_sampling_strategy="sequential",  # the rows are in the order of training already
        # the rows are in memory: worker processes would only copy them
        dataloader_num_workers=0,
        dataloader_pin_memory=device.type == "cuda",
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
    )
