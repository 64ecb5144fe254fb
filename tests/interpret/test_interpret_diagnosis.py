"""The section of a diagnosis on interpretability: what it holds, what it leaves out and why, and its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architecture_tools import tiny_architecture
from measure_architectures import MODELS, make_batch
from measure_reference import cut, make_rows

from mixln.errors import InputError
from mixln.interpret.entropy_neurons import entropy_neurons
from mixln.measure.batches import model_batches
from mixln.measure.performance import EmbeddingTurn, LanguageModelLoss
from mixln.report.depth_report import DepthReport
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.serialize import from_json, to_json
from mixln.studies.diagnose import diagnose_batches, make_report
from mixln.studies.diagnosis_config import DiagnosisConfig

BATCHES = list(model_batches(cut(make_rows(), 4)))
CONFIG = DiagnosisConfig(measures=(), interpretability_tokens=1000, interpretability_prompts=2)


def diagnosed(placement: str, config: DiagnosisConfig = CONFIG) -> ModelDiagnosis:
    return diagnose_batches(tiny_architecture("gpt2", placement), BATCHES, LanguageModelLoss(), config, name=placement)


def test_it_is_off_unless_it_is_asked_for() -> None:
    assert diagnosed("pre", DiagnosisConfig(measures=())).series == {}
    with pytest.raises(InputError, match="interpretability_prompts must be at least 1"):
        DiagnosisConfig(interpretability_prompts=0)


def test_the_report_has_all_three_measures_and_says_why_one_is_missing(tmp_path: Path) -> None:
    report = make_report([diagnosed(placement) for placement in ("none", "pre", "post")], text="rows")
    none, pre, post = (model.series for model in report.models)
    (none_gap,), (pre_gap,) = (series["attribution_gap"].values for series in (none, pre))
    assert none_gap < 1e-4 < 0.01 < pre_gap
    assert none["attribution_sum_error"].values[0] < 1e-4
    tokens = sum(int((batch.targets != -100).sum()) for batch in cut(make_rows(), 4))
    assert none["attribution_gap"].labels == [f"{tokens} tokens"]
    assert len(pre["attribution_contribution"].values) == len(pre["attribution_direct_effect"].values) == 4 + 1
    expected = entropy_neurons(tiny_architecture("gpt2", "pre"), BATCHES)
    assert pre["neuron_weight_norm"].labels == [f"neuron {index}" for index in expected.neurons]
    assert pre["entropy_change"].values == pytest.approx(expected.entropy_change.value.tolist())
    assert not {"attribution_gap", "entropy_change"} & post.keys()
    assert len(post["patching_correlation"].values) == 2
    assert sum("Post-LN" in sentence for sentence in report.models[2].findings) == 2
    assert any("direct effects of the components" in sentence for sentence in report.models[1].findings)
    assert from_json(to_json(report), DepthReport) == report
    page = report.save(tmp_path)
    text = page.read_text(encoding="utf-8")
    for name in ("attribution", "patching", "entropy_neurons"):
        assert f'<section id="{name}">' in text
        assert (tmp_path / "figures" / f"{name}.png").exists()
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["models"][1]["series"]["patching_slope"]["estimates"][0]["value"]


def test_other_models_get_a_note() -> None:
    torch.manual_seed(0)
    model = MODELS["bert"]()
    found = diagnose_batches(model, [make_batch(model)], EmbeddingTurn(), CONFIG)
    assert found.series == {}
    assert sum("need a language model" in note for note in found.notes) == 1
