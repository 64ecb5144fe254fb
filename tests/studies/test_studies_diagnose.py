"""A whole diagnosis: of text, of images, of models that lack something; and its report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from browser import assert_chromium_is_content
from depth_architectures import MODELS, make_batch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

import mixln
from mixln.data import PreparedData
from mixln.depth.batches import first_tokens
from mixln.depth.performance import EmbeddingTurn
from mixln.depth.pruning import without_blocks
from mixln.depth.stack import find_block_stack
from mixln.depth.texts import text_batches, text_windows
from mixln.errors import InputError
from mixln.report.diagnosis import DepthReport, ModelDiagnosis, Series
from mixln.report.diagnosis_figures import FIGURES
from mixln.report.diagnosis_summary import dead_layers, findings, layer_columns
from mixln.report.serialize import from_json, to_json
from mixln.studies.diagnose import MEASURE_NAMES, DiagnosisConfig, diagnose, diagnose_batches, diagnose_model
from mixln.training import Recipe
from mixln.training.build import build_model

SMALL = DiagnosisConfig(
    window=32, batch_size=3, max_tokens=600, performance_tokens=200, gradient_tokens=100, run_lengths=(2,)
)
TEXTS = [f"Document {number}: " + "the cat sat on the mat and looked at the moon. " * 12 for number in range(5)]


@pytest.fixture(scope="module")
def model(recipe: Recipe, data: PreparedData) -> nn.Module:
    return build_model(recipe, data.tokenizer).eval()


@pytest.fixture(scope="module")
def report(model: nn.Module, data: PreparedData) -> DepthReport:
    return diagnose(model, data.tokenizer, TEXTS, SMALL, scores={"quiz": quiz})


def quiz(model: nn.Module) -> list[float]:
    return model(input_ids=torch.arange(12).reshape(3, 4)).logits.std((1, 2)).tolist()


def test_a_diagnosis_has_every_measure(report: DepthReport) -> None:
    (found,) = report.models
    lengths = {"layer": 4, "state": 5, "first_of_pair": 3, "first_of_run": 3, "model": 1}
    assert set(found.series) == {
        *("block_influence", "variance", "rms", "norm", "attention_share", "feed_forward_share", "removal"),
        *("attention_removal", "feed_forward_removal", "swap", "repeat", "jacobian_distance", "removal_of_2"),
        *("gradient_norm", "perplexity", "perplexity_without", "score_quiz", "removal_quiz"),
    }
    for series in found.series.values():
        assert len(series.values) == len(series.low) == len(series.high) == lengths[series.axis]
        for value, low, high in zip(series.values, series.low, series.high, strict=True):
            assert low is not None
            assert high is not None
            assert low <= value <= high
    assert [len(row) for row in found.angular_distance] == [4, 3, 2, 1]
    assert found.documents == 5
    assert found.num_layers == len(found.layer_parameters) == 4
    assert 500 < found.tokens <= 600
    assert 200 <= found.performance_tokens < 240
    assert found.performance_of_whole == pytest.approx(math.log(400), rel=0.2)
    assert found.performance_of_whole is not None
    assert found.performance_of_whole_low is not None
    assert found.performance_of_whole_high is not None
    assert found.performance_of_whole_low < found.performance_of_whole < found.performance_of_whole_high
    assert {norm.is_on_stream for norm in found.norm_scales} == {False}


def test_perplexities_are_those_of_the_pruned_models(model: nn.Module, data: PreparedData, report: DepthReport) -> None:
    windows = text_windows(data.tokenizer, TEXTS, SMALL.window, SMALL.max_tokens, 100, special_tokens=False)
    batches = first_tokens(text_batches(windows, 1, 0, predicts_next=True), SMALL.performance_tokens)

    def perplexity() -> float:
        total, tokens = 0.0, 0
        with torch.no_grad():
            for batch in batches:
                assert batch.targets is not None
                logits = model(**batch.arguments).logits
                losses = nn.functional.cross_entropy(logits[0], batch.targets[0], reduction="none")
                total, tokens = total + losses.sum().item(), tokens + int((batch.targets != -100).sum())
        return math.exp(total / tokens)

    series = report.models[0].series
    assert series["perplexity"].values == [pytest.approx(perplexity(), rel=1e-5)]
    for layer in range(4):
        with without_blocks(find_block_stack(model), [layer]):
            assert series["perplexity_without"].values[layer] == pytest.approx(perplexity(), rel=1e-5)
    assert "perplexity without" in [column.head for column in layer_columns(report.models[0])]
    assert any(f"(perplexity {series['perplexity'].values[0]:.2f})" in one for one in findings(report.models[0]))


def test_the_report_survives_json(report: DepthReport) -> None:
    text = to_json(report)
    assert json.loads(text)["schema_version"] == 2
    assert from_json(text, DepthReport) == report
    with pytest.raises(InputError, match="schema_version 7"):
        from_json(text.replace('"schema_version": 2', '"schema_version": 7'), DepthReport)


def test_numbers_do_not_depend_on_batch_size(model: nn.Module, data: PreparedData, report: DepthReport) -> None:
    config = DiagnosisConfig(**{**vars(SMALL), "batch_size": 7})
    other = diagnose_model(model, data.tokenizer, TEXTS, config, scores={"quiz": quiz})
    for name, series in report.models[0].series.items():
        assert other.series[name].values == pytest.approx(series.values, rel=1e-4, abs=1e-5), name
    for one, two in zip(other.angular_distance, report.models[0].angular_distance, strict=True):
        assert one == pytest.approx(two, abs=1e-5)


def test_measures_can_be_chosen(model: nn.Module, data: PreparedData) -> None:
    config = DiagnosisConfig(window=32, max_tokens=100, gradient_tokens=0, measures=("similarity",))
    found = diagnose_model(model, data.tokenizer, TEXTS, config)
    assert set(found.series) == {"block_influence"}
    assert found.performance_of_whole is None
    with pytest.raises(InputError, match=r"no measure 'angle'.*similarity"):
        DiagnosisConfig(measures=("angle",)).check()
    assert "removal" in MEASURE_NAMES
    with pytest.raises(InputError, match="add --fresh-gradients true"):
        DiagnosisConfig(measures=("gradient_norm_at_init",)).check()
    assert diagnose_model(model, data.tokenizer, TEXTS, DiagnosisConfig(window=32, measures=())).series == {}
    with pytest.raises(InputError, match="run_lengths has 4, and the model 4 layers"):
        diagnose_model(model, data.tokenizer, TEXTS, DiagnosisConfig(window=32, run_lengths=(4,)))


def test_progress_of_every_stage_ends_at_all(model: nn.Module, data: PreparedData) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def report(stage: str, done: int, total: int) -> None:
        told.setdefault(stage, []).append((done, total))

    diagnose_model(model, data.tokenizer, TEXTS, SMALL, scores={"quiz": lambda _: 1.0}, report_stage=report)
    assert list(told) == ["quiz", "hidden states", "interventions", "gradient norm"]
    for steps in told.values():
        total = steps[0][1]
        assert steps == [(done, total) for done in range(total + 1)]


def test_runs_of_layers_are_reported(report: DepthReport) -> None:
    assert any("2 consecutive layers that are cheapest to remove together" in one for one in findings(report.models[0]))


def test_scores_of_ones_own_are_taken_without_each_layer(model: nn.Module, data: PreparedData) -> None:
    seen: list[int] = []

    def score(model: nn.Module) -> float:
        assert isinstance(model, mixln.MixLNLlamaForCausalLM)
        seen.append(model.config.num_hidden_layers)
        return float(len(seen))

    config = DiagnosisConfig(window=32, max_tokens=100, measures=("growth",), gradient_tokens=0)
    found = diagnose_model(model, data.tokenizer, TEXTS, config, scores={"quiz": score})
    assert seen == [4, 3, 3, 3, 3]
    assert found.series["removal_quiz"].values == [-1.0, -2.0, -3.0, -4.0]
    assert len(find_block_stack(model).layers) == 4


def test_gradients_of_a_fresh_model_are_those_of_other_weights(model: nn.Module, data: PreparedData) -> None:
    weights = [parameter.clone() for parameter in model.parameters()]
    config = DiagnosisConfig(window=32, max_tokens=100, measures=("gradient_norm_at_init",), fresh_gradients=True)
    found = diagnose_model(model, data.tokenizer, TEXTS, config)
    assert set(found.series) == {"gradient_norm_at_init"}
    assert min(found.series["gradient_norm_at_init"].values) > 0
    assert all(torch.equal(one, two) for one, two in zip(weights, model.parameters(), strict=True))


def test_an_encoder_is_measured_by_its_pooled_embedding(data: PreparedData) -> None:
    config = BertConfig(
        vocab_size=len(data.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
    )
    found = diagnose_model(BertModel(config).eval(), data.tokenizer, TEXTS, SMALL)
    assert found.performance == "1 - cosine of the pooled embedding"
    assert found.performance_of_whole == 0
    assert not {"perplexity", "perplexity_without"} & set(found.series)
    assert min(found.series["removal"].values) > 0
    assert "gradient_norm" not in found.series
    assert found.log10_gradient_factor is not None
    assert sum(norm.is_on_stream for norm in found.norm_scales) == 6
    assert any("Post-LN" in sentence for sentence in findings(found))


def test_images_are_measured_too() -> None:
    model = MODELS["vit"]()
    found = diagnose_batches(model, [make_batch(model)], EmbeddingTurn(), SMALL)
    assert len(found.series["removal"].values) == 4
    assert found.tokens == 5


def test_what_cannot_be_measured_is_noted() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            for step in self.steps:
                hidden_states = step(hidden_states)
            return hidden_states

    batch = make_batch(MODELS["vit"]())
    odd = type(batch)({"hidden_states": torch.randn(5, 6, 4)}, None, None, batch.documents)
    found = diagnose_batches(Odd(), [odd], None, SMALL)
    assert set(found.series) == {"block_influence", "variance", "rms", "norm", "jacobian_distance"}
    assert len(found.notes) == 2


def made_up(removal: list[float], high: list[float | None], whole: float) -> ModelDiagnosis:
    series = {"removal": removal_series(removal, high)}
    return ModelDiagnosis(
        *("m", "M", "layers", "B", len(removal), 100, [10] * len(removal), 1, 1, 1, "loss"),
        performance_of_whole=whole,
        series=series,
    )


def removal_series(values: list[float], high: list[float | None]) -> Series:
    return Series("removal", "layer", "loss", values, [None if end is None else -end for end in high], high)


def test_dead_weight_is_judged_at_the_upper_end_of_the_interval() -> None:
    found = made_up([0.01, 0.01, 0.5, -0.2], [0.02, 0.2, 0.6, -0.1], 3.0)
    assert dead_layers(found) == [1, 4]
    assert "2 of 4 layers are dead weight" in findings(found)[0]
    assert "1, 4; 20% of the parameters" in findings(found)[0]
    alone = made_up([0.01, 0.01, 0.5], [None, None, None], 3.0)
    assert dead_layers(alone) == [1, 2]
    assert "No layer is dead weight" in findings(made_up([1.0], [None], 3.0))[0]


def test_windows_come_from_all_documents_alike(data: PreparedData) -> None:
    windows = text_windows(data.tokenizer, TEXTS, 16, 200, 100, special_tokens=False)
    assert [window.document for window in windows[:7]] == [0, 1, 2, 3, 4, 0, 1]
    assert sum(len(window.input_ids) for window in windows) == 200
    assert all(len(window.input_ids) == 16 for window in windows[:-1])
    few = text_windows(data.tokenizer, TEXTS, 16, 200, 2, special_tokens=False)
    assert {window.document for window in few} == {0, 1}
    ids = data.tokenizer(TEXTS[0])["input_ids"]
    assert windows[0].input_ids + windows[5].input_ids == ids[:32]


def test_text_that_is_too_short_is_an_error(data: PreparedData) -> None:
    with pytest.raises(InputError, match="no text to measure on"):
        text_windows(data.tokenizer, [], 16, 200, 100, special_tokens=False)
    with pytest.raises(InputError, match=r"all of the text is \d+ tokens, less than one window \(of 512 tokens\)"):
        text_windows(data.tokenizer, TEXTS[:1], 512, 2000, 100, special_tokens=False)


def test_targets_are_the_next_tokens_wherever_the_padding_is(data: PreparedData) -> None:
    windows = text_windows(data.tokenizer, TEXTS, 16, 100, 100, special_tokens=False)
    for side in ("right", "left"):
        (batch,) = text_batches(windows, 100, 0, predicts_next=True, padding_side=side)
        assert batch.targets is not None
        assert batch.counted is not None
        for row, window in enumerate(windows):
            own = batch.arguments["attention_mask"][row].bool()
            assert batch.arguments["input_ids"][row, own].tolist() == window.input_ids
            assert batch.targets[row, batch.counted[row]].tolist() == window.input_ids[1:]
            assert batch.arguments["position_ids"][row, own].tolist() == list(range(len(window.input_ids)))


def test_a_saved_report_is_complete(report: DepthReport, tmp_path: Path) -> None:
    page = report.save(tmp_path / "out")
    drawn = {kind.name for kind in FIGURES if kind.name != "interpretability"}  # which is measured on request
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in drawn for suffix in ("png", "svg")
    }
    text = page.read_text()
    assert text.count("data:image/svg+xml;base64,") == len(drawn)
    assert all((kind.title in text) == (kind.name in drawn) for kind in FIGURES)
    assert from_json((tmp_path / "out" / "report.json").read_text(), DepthReport) == report


@pytest.mark.parametrize("width", [1100, 500])
def test_chromium_shows_the_page_without_complaint(report: DepthReport, tmp_path: Path, width: int) -> None:
    both = DepthReport([report.models[0], report.models[0]], report.text, report.machine, "mixln diagnose", "0")
    assert_chromium_is_content(both.save(tmp_path), tmp_path, width)


def test_a_folder_is_diagnosed_by_name(model: nn.Module, data: PreparedData, tmp_path: Path) -> None:
    assert isinstance(model, mixln.MixLNLlamaForCausalLM)
    model.save_pretrained(tmp_path)
    data.tokenizer.save_pretrained(tmp_path)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    found = mixln.diagnose(loaded, tokenizer, TEXTS, SMALL)
    assert found.models[0].model == str(tmp_path)
