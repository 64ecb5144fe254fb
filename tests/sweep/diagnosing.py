"""What mixln says of changed models beside what they really give."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tests.sweep import reference
from tests.sweep.building import LENGTHS, image_classes, model_rows, sweep_tokenizer, takes_images, text
from tests.sweep.outcome import Outcome, Status, of_error, where
from tests.sweep.reference import Change, Forms, Rows, swapped
from torch import nn
from transformers import PreTrainedModel

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch
from mixln.measure.performance import ClassificationLoss, EmbeddingTurn
from mixln.report.diagnosis import ModelDiagnosis
from mixln.studies.diagnose import diagnose_batches, diagnose_model
from mixln.studies.diagnosis_config import DiagnosisConfig

MEASURES = ("removal", "swap", "repeat", "attention_removal", "feed_forward_removal")


def named_lists(message: str) -> list[str]:
    """The lists of blocks that a refusal offers to choose from."""
    return re.findall(r"([\w.]+) \(\d+ x", message) if re.search("(--|`)(layers|stack)", message) else []


def check_diagnosis(model: PreTrainedModel, measures: Sequence[str] = MEASURES) -> list[Outcome]:
    """Every family of interventions beside the reference.

    Where mixln asks which list of blocks is meant, it is told one after the other of those that it names.
    """
    model, wide = in_float64(model)
    outcome: Outcome | None = None
    layers: list[str | None] = [None]
    for name in layers:
        try:
            found = _diagnose(model, name, measures)
        except Exception as error:
            if outcome is None:
                layers += named_lists(str(error)) if isinstance(error, InputError) else []
            failed = of_error("diagnose", error)
            outcome = failed if outcome is None or failed.status == "TRACEBACK" else outcome
            if failed.status == "TRACEBACK":
                return [failed]
            continue
        notes = [] if name is None else [f"with --layers {name}"]
        return _compare(model, found, wide, [*notes, *found.notes])
    assert outcome is not None
    return [outcome]


def in_float64(model: PreTrainedModel) -> tuple[PreTrainedModel, bool]:
    """A copy of the model in float64 if it runs in it, else in float32; and which."""
    other = copy.deepcopy(model)
    try:
        if hasattr(other, "set_experts_implementation"):
            other.set_experts_implementation("eager")  # grouped products know no float64
        nn.Module.double(other)
        output = reference.main_output(reference.run(other, model_rows(other)[0]))
        if output.dtype == torch.float64:
            return other, True
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        pass
    return copy.deepcopy(model), False


def _diagnose(model: PreTrainedModel, layers: str | None, measures: Sequence[str]) -> ModelDiagnosis:
    config = DiagnosisConfig(
        sequence_length=LENGTHS[0], gradient_tokens=0, run_lengths=(2,), measures=tuple(measures), stack=layers
    )
    if takes_images(model):
        pixels = torch.cat([row["pixel_values"] for row in model_rows(model)])
        classes = image_classes(model)
        batch = ModelBatch({"pixel_values": pixels}, None, classes, torch.arange(len(pixels)))
        return diagnose_batches(model, [batch], EmbeddingTurn() if classes is None else ClassificationLoss(), config)
    texts = [text(length - 1, seed) for seed, length in enumerate(LENGTHS)]
    return diagnose_model(model, sweep_tokenizer(), texts, config)


def _compare(model: PreTrainedModel, found: ModelDiagnosis, wide: bool, notes: list[str]) -> list[Outcome]:
    is_loss = found.performance.startswith("loss")
    measured, blocks, rows = _measured_part(model, found.layers_name, is_loss=is_loss)
    length = found.num_layers
    forms = Forms(measured, blocks, rows[0])
    classes = image_classes(model)
    if not is_loss:
        judged: Judged = _by_turn(measured, rows)
    else:
        judged = reference.losses if classes is None else partial(reference.class_loss, classes=classes)
    harm, whole = _harm(measured, blocks, rows, judged)
    # some norms and routers compute in float32, whatever comes
    tolerance = (1e-6 if wide else 1e-5) * max(1.0, abs(whole))
    outcomes = [_judged("loss", [found.performance_of_whole or 0.0], [whole], tolerance, "")]
    families: dict[str, list[Sequence[Callable[[], Change]]]] = {
        "removal": [[lambda i=i: forms.bypassed([i])] for i in range(length)],
        "removal_of_2": [[lambda i=i: forms.bypassed([i, i + 1])] for i in range(length - 1)],
        "swap": [[lambda i=i: swapped(i), lambda i=i: forms.swapped_calls(i)] for i in range(length - 1)],
        "repeat": [[lambda i=i: forms.repeated(i)] for i in range(length)],
        "attention_removal": [[lambda i=i: forms.silenced(i, "attention")] for i in range(length)],
        "feed_forward_removal": [[lambda i=i: forms.silenced(i, "feed_forward")] for i in range(length)],
    }
    for name, changes in families.items():
        if name not in found.series:
            outcomes.append(Outcome(name, "left out"))
            continue
        there = [math.nan if value is None else value for value in found.series[name].values]
        right, reason = _measured(changes, harm)
        outcomes.append(_judged(name, there, right, tolerance, reason))
    if "accuracy_lost" in found.series and classes is not None:
        lost, _ = _harm(measured, blocks, rows, partial(reference.wrong_share, classes=classes))
        right, reason = _measured(families["removal"], lost)
        outcomes.append(_judged("accuracy_lost", found.series["accuracy_lost"].values, right, 1e-9, reason))
    for outcome in outcomes:
        outcome.notes = notes
    return outcomes


Judged = Callable[[nn.Module, Rows], float]
"""What a model is worth on some rows; more is worse."""


def _by_turn(model: nn.Module, rows: Rows) -> Judged:
    """How far an embedding is turned from that of the whole model."""
    whole = reference.pooled(model, rows)
    return lambda other, rows: reference.turn(whole, reference.pooled(other, rows))


def _harm(model: nn.Module, blocks: str, rows: Rows, judged: Judged) -> tuple[Callable[[Change], float], float]:
    """What a change costs, as a function; and what the whole model has."""
    whole = judged(model, rows)
    return lambda change: judged(reference.changed_copy(model, blocks, change), rows) - whole, whole


def _measured_part(model: PreTrainedModel, blocks: str, *, is_loss: bool) -> tuple[nn.Module, str, Rows]:
    """What is measured, where the blocks are in it, and what it takes.

    It is the model; without a loss, its part without heads; of an encoder-decoder, the encoder if the blocks are in it.
    """
    rows = model_rows(model)
    is_whole = is_loss or getattr(reference.run(model, rows[0]), "last_hidden_state", None) is not None
    part: Any = model if is_whole else model.base_model
    wanted = model.get_submodule(blocks)
    if model.config.is_encoder_decoder:
        base: Any = model.base_model
        encoder = base.get_encoder()
        if any(module is wanted for module in encoder.modules()):
            part, rows = encoder, [{"input_ids": row["input_ids"]} for row in rows]
    return part, next(name for name, module in part.named_modules() if module is wanted), rows


def _measured(
    changes: Sequence[Sequence[Callable[[], Change]]], harm: Callable[[Change], float]
) -> tuple[list[float], str]:
    """The harm of each change, in the first of its ways that runs; nan where none does, and why."""
    right: list[float] = []
    reason = ""
    for ways in changes:
        for make in ways:
            try:
                right.append(harm(make()))
                break
            except Exception as error:
                reason = f" (nan: {where(error)})"
        else:
            right.append(math.nan)
    return right, reason


def _judged(name: str, there: list[float], right: list[float], tolerance: float, reason: str) -> Outcome:
    worst = max(map(_difference, there, right))
    status: Status = "right" if worst <= tolerance else "WRONG"
    numbers = f"{_short(there)} where {_short(right)} is right{reason}"
    return Outcome(name, status, "" if status == "right" else numbers, worst)


def _difference(there: float, right: float) -> float:
    """How far apart; what has no value is to have none."""
    if math.isnan(there) and math.isnan(right):
        return 0.0
    return math.inf if math.isnan(there) or math.isnan(right) else abs(there - right)


def _short(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
