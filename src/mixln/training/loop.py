"""Training one model: the whole loop, to be read from top to bottom."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mixln.data import Batch, PreparedData, evaluation_batches, training_batch
from mixln.depth import EvaluationLoss, evaluation_loss
from mixln.errors import InputError
from mixln.files import whole_folder, write_file
from mixln.models import PlacedPreTrainedModel
from mixln.training.checkpoint import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from mixln.training.config import Recipe, model_config
from mixln.training.interrupt import deferred_interrupt
from mixln.training.metrics import METRICS_FILE, MetricsLog, read_metrics
from mixln.training.schedule import learning_rate

RECIPE_FILE = "recipe.json"
MODEL_FOLDER = "model"

ReportStep = Callable[[int, float, float], None]
"""Called after every step with (step, training loss, tokens per second)."""


class TrainingDivergedError(RuntimeError):
    """The loss stopped being a finite number."""


@dataclass(frozen=True)
class TrainedModel:
    """The outcome of a run.

    Attributes:
        model: the trained model, in evaluation mode.
        validation: its validation loss.
        train_tokens: the tokens predicted in training: without padding, without the first of each document.
    """

    model: PlacedPreTrainedModel
    validation: EvaluationLoss
    train_tokens: int


def train(recipe: Recipe, data: PreparedData, folder: Path, report_step: ReportStep | None = None) -> TrainedModel:
    """Train a model by a recipe.

    An interrupted run in the same folder is taken up where its last checkpoint is, and a finished one is only
    validated again.

    The folder gets `recipe.json`, `metrics.jsonl`, `tensorboard/`, and in the end `model/`, a Hugging Face folder
    with the tokenizer. On Ctrl-C (or SIGTERM) the step is finished and a checkpoint written before KeyboardInterrupt
    is raised.

    Raises:
        InputError: the folder holds a run of another recipe, or another process is at it, or it cannot be written.
        TrainingDivergedError: the loss became infinite or not a number.
    """
    recipe.check()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with claimed_folder(folder, recipe, data.fingerprint):
        if (folder / MODEL_FOLDER).exists():
            return _finished_run(recipe, data, folder, device)
        return _train(recipe, data, folder, device, report_step)


def _train(
    recipe: Recipe, data: PreparedData, folder: Path, device: torch.device, report_step: ReportStep | None
) -> TrainedModel:
    model = build_model(recipe, data.tokenizer, device)
    optimizer = build_optimizer(recipe, model)
    step, tokens = load_checkpoint(folder, model, optimizer)
    autocast_dtype = resolve_precision(recipe, device)
    evaluate_every = recipe.evaluate_every or max(1, recipe.last_step // 4)
    checkpoint_every = recipe.checkpoint_every
    validation: EvaluationLoss | None = None
    with MetricsLog(folder, resume_step=step) as metrics, deferred_interrupt() as interruption:
        tokens_here, seconds = 0, 0.0
        while step < recipe.last_step:
            started = time.perf_counter()
            batch = training_batch(data.train, step, recipe.batch_size, recipe.seed)
            loss = accumulate_gradients(model, batch, recipe.micro_batch_size, device, autocast_dtype)
            max_norm = recipe.optimizer.max_grad_norm or math.inf
            gradient_norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))
            _check_finite("training loss", loss, step + 1, folder)
            _check_finite("gradient norm", gradient_norm, step + 1, folder)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step + 1)
            optimizer.step()
            optimizer.zero_grad()

            step += 1
            tokens += batch.num_predicted_tokens
            tokens_here += batch.num_predicted_tokens
            step_seconds = time.perf_counter() - started
            seconds += step_seconds
            values = {
                "loss": loss,
                "learning_rate": learning_rate(recipe, step),
                "gradient_norm": gradient_norm,
                "tokens": tokens,
                "seconds": step_seconds,
                "tokens_per_second": tokens_here / seconds,
            }
            if step % evaluate_every == 0 or step == recipe.last_step:
                validation = validate(model, recipe, data, device)
                _check_finite("validation loss", validation.mean, step, folder)
                values["validation_loss"] = validation.mean
            metrics.write(step, values)
            if report_step is not None:
                report_step(step, loss, tokens_here / seconds)
            if interruption.requested or (step % checkpoint_every == 0 and step < recipe.last_step):
                metrics.flush()
                save_checkpoint(folder, step, tokens, model, optimizer)
            if interruption.requested:
                raise KeyboardInterrupt

    model.eval()
    _save_model(model, data.tokenizer, folder / MODEL_FOLDER)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return TrainedModel(model, validation or validate(model, recipe, data, device), tokens)


def _check_finite(what: str, value: float, step: int, folder: Path) -> None:
    if not math.isfinite(value):
        raise TrainingDivergedError(
            f"the {what} was {value} in step {step} of {folder}. Lower optimizer.learning_rate or lengthen "
            "optimizer.warmup_steps; Post-LN layers need a long warmup"
        )


def _finished_run(recipe: Recipe, data: PreparedData, folder: Path, device: torch.device) -> TrainedModel:
    lines = read_metrics(folder)
    if not lines:
        raise InputError(f"{folder} has a finished model, but its metrics are gone. Delete it to train this run anew")
    model = _load_model(folder / MODEL_FOLDER, device)
    return TrainedModel(model, validate(model, recipe, data, device), int(lines[-1]["tokens"]))


def validate(model: torch.nn.Module, recipe: Recipe, data: PreparedData, device: torch.device) -> EvaluationLoss:
    """Return the loss over all validation rows: total loss / total predicted tokens, whatever the batch size."""
    batches = (batch.to(device) for batch in evaluation_batches(data.validation, recipe.evaluation_batch_size))
    return evaluation_loss(model, batches, autocast_dtype=resolve_precision(recipe, device))


def build_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, device: torch.device | str = "cpu"
) -> PlacedPreTrainedModel:
    """Return the recipe's model with its initial weights, which depend on (seed, parameter name) alone.

    Raises:
        InputError: the model's sizes do not fit together.
    """
    bos, eos = (token if isinstance(token, int) else None for token in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    config = model_config(recipe, len(tokenizer), bos, eos)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert isinstance(model, PlacedPreTrainedModel)
    model.to_empty(device=device)
    model.tie_weights()
    model.initialize(recipe.seed)
    model.train()
    return model


def build_optimizer(recipe: Recipe, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return Adam or AdamW; weight decay, if any, applies to matrices only."""
    settings = recipe.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return kind(
        groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True
    )


def accumulate_gradients(
    model: torch.nn.Module,
    batch: Batch,
    micro_batch_size: int | None,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> float:
    """Add to the gradients those of the batch's mean loss, and return that loss in nats per predicted token.

    The mean is over the predicted tokens of the whole batch, however it is cut into micro-batches.
    """
    num_tokens = max(1, batch.num_predicted_tokens)
    total = 0.0
    for part in _cut(batch, micro_batch_size):
        part = part.to(device)
        with _autocast(device, autocast_dtype):
            logits = model(input_ids=part.input_ids, position_ids=part.position_ids, use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), part.targets.flatten(), reduction="sum") / num_tokens
        loss.backward()
        total += loss.item()
    return total


def resolve_precision(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """Return the dtype to autocast to, or None for float32 throughout."""
    if recipe.precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
        return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else None
    return torch.bfloat16 if recipe.precision == "bfloat16" else None


@contextmanager
def claimed_folder(folder: Path, recipe: Recipe, data_fingerprint: str) -> Iterator[None]:
    """Hold a run's folder for this process alone, created if need be, after making sure that its run is this one.

    Raises:
        InputError: the run in it is of another recipe or other data, another process is at it, or it cannot be written.
    """
    path = folder / RECIPE_FILE
    wanted = {**recipe.identity(), "data_fingerprint": data_fingerprint}
    if not path.exists():
        if foreign := [name for name in (MODEL_FOLDER, CHECKPOINT_FILE, METRICS_FILE) if (folder / name).exists()]:
            raise InputError(
                f"{folder} holds {foreign[0]}, but no {RECIPE_FILE} that says of which run. Choose another"
            )
        write_file(path, json.dumps(wanted, indent=2) + "\n")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON. Delete {folder} to start this run over") from error
    if changes := list(differences(found, wanted)):
        raise InputError(f"{folder} holds a run of another recipe ({'; '.join(changes)}). Choose another folder")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"another process is training in {folder}. Wait for it, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def differences(before: object, after: object, name: str = "") -> Iterator[str]:
    """Yield a sentence for every value that differs between two nested dictionaries."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), f"{name}.{key}" if name else key)
    elif before != after:
        yield f"{name} was {before}, is {after}"


def _cut(batch: Batch, size: int | None) -> Iterator[Batch]:
    rows = batch.input_ids.shape[0]
    for start in range(0, rows, size or rows):
        part = slice(start, start + (size or rows))
        yield Batch(batch.input_ids[part], batch.targets[part], batch.position_ids[part])


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _save_model(model: PlacedPreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the finished model whole or not at all: its folder is the mark of a finished run."""
    try:
        with whole_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the model could not be saved in {folder} ({error}). Mend that, and run the same command again: it goes "
            "on from the last checkpoint"
        ) from error


def _load_model(folder: Path, device: torch.device) -> PlacedPreTrainedModel:
    try:
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"the finished model {folder} is damaged ({error}). Delete it to train it anew") from error
    assert isinstance(model, PlacedPreTrainedModel)
    torch.nn.Module.to(model, device)
    return model.eval()
