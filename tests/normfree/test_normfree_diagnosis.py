"""The section of a diagnosis on interpretability: what it holds, what it leaves out and why, and its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architecture_tools import tiny_architecture
from depth_architectures import MODELS, make_batch
from depth_reference import cut, make_rows

from mixln.depth.batches import model_batches
from mixln.depth.performance import EmbeddingTurn, LanguageModelLoss
from mixln.errors import InputError
from mixln.normfree import entropy_neurons
from mixln.report.diagnosis import DepthReport, ModelDiagnosis
from mixln.report.diagnosis_summary import findings
from mixln.report.serialize import from_json, to_json
from mixln.studies.diagnose import DiagnosisConfig, diagnose_batches, make_report

BATCHES = list(model_batches(cut(make_rows(), 4)))
CONFIG = DiagnosisConfig(measures=(), interpretability_tokens=1000, interpretability_prompts=2)


def diagnosed(placement: str, config: DiagnosisConfig = CONFIG) -> ModelDiagnosis:
    return diagnose_batches(tiny_architecture("gpt2", placement), BATCHES, LanguageModelLoss(), config, name=placement)


def test_it_is_off_unless_it_is_asked_for() -> None:
    assert diagnosed("pre", DiagnosisConfig(measures=())).interpretability is None
    with pytest.raises(InputError, match="interpretability_prompts must be at least 1"):
        DiagnosisConfig(interpretability_prompts=0).check()


def test_the_report_has_all_three_measures_and_says_why_one_is_missing(tmp_path: Path) -> None:
    report = make_report([diagnosed(placement) for placement in ("none", "pre", "post")], text="rows")
    none, pre, post = (model.interpretability for model in report.models)
    assert none is not None
    assert pre is not None
    assert post is not None
    assert none.attribution is not None
    assert pre.attribution is not None
    assert none.attribution.gap < 1e-4 < 0.01 < pre.attribution.gap
    assert none.attribution.sum_error < 1e-4
    assert none.attribution.tokens == sum(int((batch.targets != -100).sum()) for batch in cut(make_rows(), 4))
    assert len(pre.attribution.contribution) == len(pre.attribution.direct_effect) == 4 + 1
    assert pre.entropy_neurons is not None
    expected = entropy_neurons(tiny_architecture("gpt2", "pre"), BATCHES)
    assert pre.entropy_neurons.neurons == expected.neurons
    assert pre.entropy_neurons.entropy_change == pytest.approx(expected.entropy_change.value.tolist())
    assert post.attribution is post.entropy_neurons is None
    assert post.patching is not None
    assert len(post.patching.correlation) == 2
    assert sum("Post-LN" in sentence for sentence in findings(report.models[2])) == 2
    assert any("direct effects of the components" in sentence for sentence in findings(report.models[1]))
    assert from_json(to_json(report), DepthReport) == report
    page = report.save(tmp_path)
    assert "What the norms do to the tools" in page.read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "interpretability.png").exists()
    assert json.loads((tmp_path / "report.json").read_text())["models"][1]["interpretability"]["patching"]["slope"]


def test_other_models_get_a_note() -> None:
    torch.manual_seed(0)
    model = MODELS["bert"]()
    found = diagnose_batches(model, [make_batch(model)], EmbeddingTurn(), CONFIG)
    assert found.interpretability is None
    assert any("are of language models" in note for note in found.notes)
