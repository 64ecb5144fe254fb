"""What `diagnose` costs on a model of a given size, beside forward passes over the same text."""

from __future__ import annotations

import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

from benchmarks.documents import load_documents
from benchmarks.gpu.processes import END, Process
from benchmarks.gpu.results import Recorder
from benchmarks.gpu.side_by_side import Place
from benchmarks.meter import Meter
from benchmarks.settings import SEQUENCE_LENGTH, Settings
from mixln.data import open_corpus
from mixln.device import default_device
from mixln.measure.batches import ModelBatch
from mixln.measure.texts import text_batches, text_windows
from mixln.report.diagnosis import ModelDiagnosis
from mixln.studies.diagnose import diagnose_model
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.tasks.build import build_model

_STAGE = "stage"


def diagnose(connection: Connection, settings: Settings, config: DiagnosisConfig) -> dict[str, Any]:
    """Diagnose a model of the recipe with its initial weights: what they are plays no part in the time.

    The weights are in the precision of the settings, as those of a published checkpoint are.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    tokenizer = load_documents(settings).tokenizer
    device = default_device()
    dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    model = build_model(settings.recipe(), tokenizer, device).eval()
    nn.Module.to(model, dtype)  # transformers' own `to` is typed for quantised models alone
    texts = list(_texts(settings, config))
    windows = text_windows(
        tokenizer, iter(texts), config.sequence_length, config.max_tokens, config.max_documents, special_tokens=False
    )
    batches = text_batches(windows, config.batch_size, 0, predicts_next=True)
    _forward_seconds(model, batches[:1], device)  # loads what computes
    meter = Meter(device)
    meter.begin()
    forward = _forward_seconds(model, batches, device)
    values = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": settings.recipe().model.num_hidden_layers,
        "tokens": sum(len(window.input_ids) for window in windows),
        "forward_seconds": forward,
        "forward_peak_bytes": meter.peak_bytes(),
    }
    connection.send({"kind": _STAGE, "status": "ok", "values": values})
    stages = _Stages(connection)
    meter.reset_peak()
    begun = time.perf_counter()
    found = diagnose_model(model, tokenizer, texts, config, name=settings.size, report_stage=stages, keep=stages.keep)
    return values | {
        "seconds": time.perf_counter() - begun,
        "peak_bytes": meter.peak_bytes(),
        "reserved_bytes": meter.reserved_bytes(),
        "tokens": found.tokens,
        "performance_tokens": found.performance_tokens,
    }


def _texts(settings: Settings, config: DiagnosisConfig) -> list[str]:
    documents = open_corpus(settings.documents).documents()
    return [text for text, _ in zip(documents, range(config.max_documents), strict=False)]


def _forward_seconds(model: nn.Module, batches: list[ModelBatch], device: torch.device) -> float:
    begun = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            model(**batch.arguments_on(device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


class _Stages:
    """Tells the benchmark how far the diagnosis is, in case that its time is over before it is done."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._begun = time.perf_counter()
        self._last = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._last = f"{stage} {done}/{total}"

    def keep(self, _: ModelDiagnosis) -> None:
        values = {"reached": self._last, "reached_seconds": time.perf_counter() - self._begun}
        self._connection.send({"kind": _STAGE, "status": "ok", "values": values})


def measure_diagnosis(
    settings: Settings, config: DiagnosisConfig, until: float, place: Place, recorder: Recorder
) -> None:
    """Fill `results.diagnosis`."""
    found = recorder.results.diagnosis
    found["size"] = settings.size
    process = Process("diagnosis", diagnose, (settings, config), place.folder, place.environment)
    try:
        message = process.receive(until)
        while message["kind"] != END:
            found |= message["values"]
            recorder.save()
            message = process.receive(until)
    finally:
        process.end()
    if message["status"] != "ok":
        reached = f" after {found['reached']}" if "reached" in found else ""
        recorder.leave_out(f"diagnosis of {settings.size}: {message['message']}{reached}")
        return
    found |= message["values"]
    recorder.say(
        f"diagnosis: {found['seconds']:.1f} s, {found['seconds'] / found['forward_seconds']:.1f} forward passes"
    )
    recorder.save()


def config_for(tokens: int | None) -> DiagnosisConfig:
    """Return the default diagnosis in windows of a row of the model, of fewer tokens if asked for."""
    config = DiagnosisConfig(sequence_length=SEQUENCE_LENGTH)
    if tokens is None:
        return config
    return replace(config, max_tokens=tokens, performance_tokens=tokens, gradient_tokens=tokens, batch_size=2)
