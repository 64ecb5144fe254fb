"""litgpt's own training loop, `litgpt.pretrain.fit`, on packed documents.

The lines before the loop are those of `litgpt.pretrain.main`, which compiles the model. litgpt packs documents without
regard to their borders, as `trainer-crossing` does. It leaves the fused optimiser to GPUs; here it gets it everywhere,
as the others do. Its initial weights are its own too, so that its first losses differ.
"""

# litgpt is no dependency of the project
# pyright: reportMissingImports=false

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.loggers.logger import Logger
from litgpt import Config
from litgpt.args import EvalArgs, TrainArgs
from litgpt.model import GPT
from litgpt.pretrain import fit, initialize_weights
from torch import Tensor

from benchmarks.contenders import Outcome
from benchmarks.documents import Counts
from benchmarks.meter import Meter
from benchmarks.settings import SEQUENCE_LENGTH, Settings
from mixln.data import PreparedData, training_rows
from mixln.tasks import Recipe


class _Batches:
    """Blocks of 257 tokens in batches, in mixln's order; that the next one is asked for means that a step is done."""

    def __init__(self, data: PreparedData, settings: Settings, meter: Meter) -> None:
        tokens = torch.from_numpy(data.train.store.tokens[:].astype("int64"))
        self._batches = [
            _blocks(tokens, training_rows(len(data.train), step, settings.rows_per_step, settings.seed))
            for step in range(settings.total_steps)
        ]
        self._settings = settings
        self._meter = meter

    def __len__(self) -> int:
        return len(self._batches) * self._settings.accumulation

    def __iter__(self) -> Iterator[Tensor]:
        slots = self._settings.rows_per_step * SEQUENCE_LENGTH
        for blocks in self._batches:
            for part in blocks.split(self._settings.micro_batch_size):
                yield part.to(self._meter.device, non_blocking=True)
            self._meter.finish_step(Counts(predicted=slots, slots=slots))
        yield self.first()  # the loop asks for one batch more before it stops

    def first(self) -> Tensor:
        """The first micro-batch."""
        return self._batches[0][: self._settings.micro_batch_size].to(self._meter.device)


class _LossLogger(Logger):
    """Keeps the loss that litgpt logs after the last step."""

    loss = float("nan")

    @property
    def name(self) -> str:
        return "loss"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # noqa: ARG002
        self.loss = float(metrics.get("loss", self.loss))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept of them."""


def run(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """As litgpt ships it, with the model compiled."""
    return _run(settings, data, meter, compiled=True)


def run_eager(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """Without compilation."""
    return _run(settings, data, meter, compiled=False)


def _run(settings: Settings, data: PreparedData, meter: Meter, *, compiled: bool) -> Outcome:
    recipe = settings.recipe()
    batches = _Batches(data, settings, meter)
    logger = _LossLogger()
    meter.begin()
    accelerator = "cpu" if meter.device.type == "cpu" else "cuda"
    precision = "bf16-mixed" if settings.precision == "bfloat16" else "32-true"
    fabric = lightning.Fabric(accelerator=accelerator, devices=1, precision=precision, loggers=[logger])
    fabric.launch()
    fabric.seed_everything(recipe.seed)
    config = _config(recipe, len(data.tokenizer))
    with fabric.init_module(empty_init=True):
        model = GPT(config)
    initialize_weights(fabric, model, n_layer=config.n_layer, n_embd=config.n_embd)
    model.max_seq_length = SEQUENCE_LENGTH
    parameters = sum(parameter.numel() for parameter in model.parameters())
    wrapped = fabric.setup(torch.compile(model) if compiled else model)
    optimizer = fabric.setup_optimizers(_optimizer(recipe, wrapped))
    state = {"model": wrapped, "optimizer": optimizer, "train_dataloader": batches, "iter_num": 0, "step_count": 0}
    with tempfile.TemporaryDirectory() as folder:
        fit(
            fabric=fabric,
            devices=1,
            state=state,
            train_dataloader=batches,
            # for the check that litgpt makes before training; of the usual shape, or else the model is compiled twice
            val_dataloader=[batches.first()],
            out_dir=Path(folder),
            tokenizer_dir=None,
            train=_train_arguments(settings, recipe),
            eval=EvalArgs(interval=settings.total_steps + 1, max_iters=1, final_validation=False),
        )
    return Outcome(logger.loss, parameters)


def _blocks(tokens: Tensor, rows: np.ndarray) -> Tensor:
    starts = torch.from_numpy(rows) * SEQUENCE_LENGTH
    return tokens[starts[:, None] + torch.arange(SEQUENCE_LENGTH + 1)]


def _config(recipe: Recipe, vocabulary: int) -> Config:
    model = recipe.model
    return Config(
        name="benchmark",
        block_size=SEQUENCE_LENGTH,
        vocab_size=vocabulary,
        padded_vocab_size=vocabulary,
        n_layer=model.num_hidden_layers,
        n_head=model.num_attention_heads,
        n_query_groups=model.num_key_value_heads or model.num_attention_heads,
        n_embd=model.hidden_size,
        intermediate_size=model.intermediate_size,
        rotary_percentage=1.0,
        rope_base=int(model.rope_theta),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=model.rms_norm_eps,
        mlp_class_name="LLaMAMLP",
    )


def _optimizer(recipe: Recipe, model: torch.nn.Module) -> torch.optim.Optimizer:
    settings = recipe.optimizer
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _train_arguments(settings: Settings, recipe: Recipe) -> TrainArgs:
    return TrainArgs(
        save_interval=None,
        log_interval=settings.total_steps,  # once, at the end
        global_batch_size=settings.rows_per_step,
        micro_batch_size=settings.micro_batch_size,
        lr_warmup_steps=recipe.warmup_steps,
        max_tokens=settings.total_steps * settings.rows_per_step * SEQUENCE_LENGTH,
        max_seq_length=SEQUENCE_LENGTH,
        max_norm=recipe.optimizer.max_grad_norm or float("inf"),
        min_lr=recipe.optimizer.learning_rate * recipe.optimizer.final_learning_rate_fraction,
    )
