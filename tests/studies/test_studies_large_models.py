"""What large models are measured with: half precision, and weights that accelerate keeps elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_llama
from torch import nn
from transformers import LlamaForCausalLM

from mixln.data import PreparedData
from mixln.measure.forward import model_device
from mixln.models.anatomy import find_block_stack
from mixln.report.diagnosis import ModelDiagnosis
from mixln.studies.diagnose import diagnose_model
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.pruned_folder import prune_model
from mixln.studies.pruning_request import PruningRequest
from tasks import make_items, write_task

CONFIG = DiagnosisConfig(
    sequence_length=32, max_tokens=300, performance_tokens=200, gradient_tokens=100, run_lengths=(2,)
)
TEXTS = [f"Document {number}: " + "the cat sat on the mat and looked at the moon. " * 12 for number in range(5)]


@pytest.fixture(scope="module")
def folder(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"), data.tokenizer, 4)


@pytest.fixture(scope="module")
def expected(folder: Path, data: PreparedData) -> ModelDiagnosis:
    return diagnose_model(LlamaForCausalLM.from_pretrained(folder), data.tokenizer, TEXTS, CONFIG)


def numbers(found: ModelDiagnosis, name: str) -> list[float]:
    return found.series[name].values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_with_float32(
    folder: Path, data: PreparedData, expected: ModelDiagnosis, dtype: torch.dtype
) -> None:
    """Performance drops within 0.01 nats, all else within 1 %."""
    half = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    found = diagnose_model(half, data.tokenizer, TEXTS, CONFIG)
    assert set(found.series) == set(expected.series)
    for name, series in expected.series.items():
        assert all(map(math.isfinite, numbers(found, name))), name
        rel, abs_ = (0.0, 0.01) if series.unit == expected.performance else (0.01, 0.0)
        rel, abs_ = (0.0, 0.002) if name == "angular_distance" else (rel, abs_)
        assert numbers(found, name) == pytest.approx(series.values, rel=rel, abs=abs_), name
        assert found.series[name].labels == series.labels


AROUND = {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
MAPS = {
    "some blocks": {**AROUND, "model.embed_tokens": "cpu", "model.layers.1": "disk", "model.layers.3": "disk"}
    | {f"model.layers.{index}": "cpu" for index in (0, 2)},
    "embedding": {**AROUND, "model.embed_tokens": "disk"} | {f"model.layers.{index}": "cpu" for index in range(4)},
    # a single device would do, but transformers 5.10 then leaves the model without its weights
    "everything": {"model.rotary_emb": "cpu"}
    | dict.fromkeys(("model.embed_tokens", "model.layers", "model.norm", "lm_head"), "disk"),
}


@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
def test_offloaded_weights_make_no_difference(
    folder: Path, data: PreparedData, expected: ModelDiagnosis, device_map: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="a device_map needs accelerate")
    offloaded = LlamaForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    assert model_device(offloaded) == torch.device("cpu")

    def spread(model: nn.Module) -> float:
        return model(input_ids=torch.arange(10)[None]).logits.std().item()

    found = diagnose_model(offloaded, data.tokenizer, TEXTS, CONFIG, scores={"spread": spread})
    whole = LlamaForCausalLM.from_pretrained(folder)
    plain = diagnose_model(
        whole,
        data.tokenizer,
        TEXTS,
        DiagnosisConfig(sequence_length=32, max_tokens=100, measures=()),
        scores={"spread": spread},
    )
    has_gradients = device_map.get("model.layers.1") == "cpu"
    missing = set() if has_gradients else {"gradient_norm"}
    assert set(expected.series) - set(found.series) == missing
    assert any("Weights are offloaded" in note for note in found.notes) is not has_gradients
    for name in set(expected.series) - missing:
        assert numbers(found, name) == pytest.approx(numbers(expected, name), rel=1e-6, abs=1e-7), name
    for name in ("angular_distance", "sigma_in_branch"):
        assert found.series[name] == expected.series[name]
    assert numbers(found, "removal:spread") == pytest.approx(numbers(plain, "removal:spread"), abs=1e-6)


def test_an_offloaded_model_is_pruned(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="a device_map needs accelerate")
    device_map = MAPS["embedding"] | {"model.layers.1": "disk", "model.layers.3": "disk"}
    offloaded = LlamaForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path / "off")
    prune_model(PruningRequest(str(folder), (2, 3)), find_block_stack(offloaded), [1, 2], tmp_path / "out")
    whole, pruned = (LlamaForCausalLM.from_pretrained(path).model for path in (folder, tmp_path / "out"))
    for index, original in enumerate((0, 3)):
        kept = zip(pruned.layers[index].parameters(), whole.layers[original].parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in kept)
    assert torch.equal(pruned.embed_tokens.weight, whole.embed_tokens.weight)


def test_tasks_run_on_offloaded_weights(
    folder: Path, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="needs mixln[evaluation]")
    from mixln.evaluation.task_scores import task_score

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    score = task_score(data.tokenizer, "words", include_path=write_task(tmp_path / "tasks", make_items(6)))
    offloaded = LlamaForCausalLM.from_pretrained(folder, device_map=MAPS["everything"], offload_folder=tmp_path / "off")
    assert score(offloaded) == score(LlamaForCausalLM.from_pretrained(folder))
