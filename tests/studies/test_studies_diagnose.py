"""A whole diagnosis: of text, of images, of models that lack something; and its report."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from browser import assert_chromium_is_content
from measure_architectures import MODELS, make_batch
from rich.console import Console
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    FNetConfig,
    FNetModel,
    PixtralVisionConfig,
    PixtralVisionModel,
    PreTrainedModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5EncoderModel,
    T5Model,
)

import mixln
from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.measure.batches import ModelBatch, first_tokens
from mixln.measure.performance import EmbeddingTurn, LanguageModelLoss
from mixln.measure.pruning import without_blocks
from mixln.measure.recording import recording
from mixln.measure.texts import text_batches, text_windows
from mixln.models.anatomy import find_block_stack
from mixln.report.depth_report import DepthReport, layer_rows, layer_tables, shown_columns
from mixln.report.diagnosis import OVER_TOKEN_FREQUENCIES, ModelDiagnosis
from mixln.report.serialize import from_json, to_json
from mixln.report.series import ColumnSpec, Estimate, Series
from mixln.studies import measures
from mixln.studies.diagnose import _own_entries, all_entries, diagnose_batches, diagnose_model
from mixln.studies.diagnosis_config import MEASURE_NAMES, DiagnosisConfig
from mixln.studies.measuring import presented
from mixln.tasks import Recipe
from mixln.tasks.build import build_model

SMALL = DiagnosisConfig(
    sequence_length=32, batch_size=3, max_tokens=600, performance_tokens=200, gradient_tokens=100, run_lengths=(2,)
)
TEXTS = [f"Document {number}: " + "the cat sat on the mat and looked at the moon. " * 12 for number in range(5)]


@pytest.fixture(scope="module")
def model(recipe: Recipe, data: PreparedData) -> nn.Module:
    return build_model(recipe, data.tokenizer).eval()


@pytest.fixture(scope="module")
def report(model: nn.Module, data: PreparedData) -> DepthReport:
    return mixln.diagnose(model, data.tokenizer, TEXTS, SMALL, scores={"quiz": quiz})


def quiz(model: nn.Module) -> list[float]:
    return model(input_ids=torch.arange(12).reshape(3, 4)).logits.std((1, 2)).tolist()


def test_a_diagnosis_has_every_measure(report: DepthReport) -> None:
    (found,) = report.models
    lengths = {"layer": 4, "state": 5, "first_of_pair": 3, "first_of_run": 3, "run": 10, "model": 1, "norm": 8}
    assert set(found.series) == {
        *("block_influence", "variance", "rms", "norm", "attention_share", "feed_forward_share", "removal"),
        *("attention_removal", "feed_forward_removal", "swap", "repeat", "jacobian_distance", "removal_of_2"),
        *("gradient_norm", "perplexity", "perplexity_without", "score:quiz", "removal:quiz"),
        *("performance", "angular_distance", "sigma_in_branch", "log10_gradient_factor"),
        *("model_loss", "token_frequencies", "token_pairs", "over_token_frequencies"),
    }
    for series in found.series.values():
        assert len(series.values) == len(series.estimates) == lengths[series.axis]
        for estimate in series.estimates:
            assert estimate.interval is not None
            low, high = estimate.interval
            assert low <= estimate.value <= high
    assert [len(row) for row in found.series["angular_distance"].triangle()] == [4, 3, 2, 1]
    assert found.documents == 5
    assert found.num_layers == len(found.layer_parameters) == 4
    assert 500 < found.tokens <= 600
    assert 200 <= found.performance_tokens < 240
    assert found.performance_of_whole == pytest.approx(math.log(400), rel=0.2)
    (whole,) = found.series["performance"].estimates
    assert whole.interval is not None
    assert whole.interval[0] < whole.value < whole.interval[1]
    assert "sigma_on_stream" not in found.series


def test_perplexities_are_those_of_the_pruned_models(model: nn.Module, data: PreparedData, report: DepthReport) -> None:
    windows = text_windows(data.tokenizer, TEXTS, SMALL.sequence_length, SMALL.max_tokens, 100, special_tokens=False)
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
    assert "perplexity without" in [column.head for column in shown_columns(report.models[0])]
    assert any(f"(perplexity {series['perplexity'].values[0]:.2f})" in one for one in as_if_it_had_learned(report))


def test_the_report_survives_json(report: DepthReport) -> None:
    text = to_json(report)
    assert json.loads(text)["schema_version"] == 3
    assert from_json(text, DepthReport) == report
    with pytest.raises(InputError, match="schema_version 7"):
        from_json(text.replace('"schema_version": 3', '"schema_version": 7'), DepthReport)


def test_numbers_do_not_depend_on_batch_size(model: nn.Module, data: PreparedData, report: DepthReport) -> None:
    config = DiagnosisConfig(**{**vars(SMALL), "batch_size": 7})
    other = diagnose_model(model, data.tokenizer, TEXTS, config, scores={"quiz": quiz})
    for name, series in report.models[0].series.items():
        rel = 0.0 if name == "angular_distance" else 1e-4
        assert other.series[name].values == pytest.approx(series.values, rel=rel, abs=1e-5), name


def test_measures_can_be_chosen(model: nn.Module, data: PreparedData) -> None:
    config = DiagnosisConfig(sequence_length=32, max_tokens=100, gradient_tokens=0, measures=("similarity",))
    found = diagnose_model(model, data.tokenizer, TEXTS, config)
    verdict = {"model_loss", "token_frequencies", "token_pairs", "over_token_frequencies"}
    assert set(found.series) == {"block_influence", "angular_distance"} | verdict
    assert found.performance_of_whole is None
    without = diagnose_model(model, data.tokenizer, TEXTS, replace(config, without=("token_frequencies",)))
    assert set(without.series) == {"block_influence", "angular_distance"}
    fewer = replace(config, measures=("similarity", "growth"), without=("similarity", "gradient_norm"))
    assert set(diagnose_model(model, data.tokenizer, TEXTS, fewer).series) == {"variance", "rms", "norm"}
    with pytest.raises(InputError, match=r"no measure 'angle'.*similarity"):
        DiagnosisConfig(measures=("angle",))
    with pytest.raises(InputError, match=r"no measure 'jacobians'\. Did you mean 'jacobian'\?"):
        DiagnosisConfig(without=("jacobians",))
    assert "removal" in MEASURE_NAMES
    with pytest.raises(InputError, match="add `fresh_gradients=true`"):
        DiagnosisConfig(measures=("gradient_norm_at_init",))
    assert diagnose_model(model, data.tokenizer, TEXTS, DiagnosisConfig(sequence_length=32, measures=())).series == {}
    with pytest.raises(InputError, match="run_lengths has 4, and the model 4 layers"):
        diagnose_model(model, data.tokenizer, TEXTS, DiagnosisConfig(sequence_length=32, run_lengths=(4,)))


def test_progress_of_every_stage_ends_at_all(model: nn.Module, data: PreparedData) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def report(stage: str, done: int, total: int) -> None:
        told.setdefault(stage, []).append((done, total))

    diagnose_model(model, data.tokenizer, TEXTS, SMALL, scores={"quiz": lambda _: 1.0}, report_stage=report)
    assert list(told) == ["quiz", "hidden states", "interventions", "gradient norm"]
    assert told["quiz"].pop(0) == (0, 0)  # how long a score takes is known once the whole model has been scored
    told["quiz"].insert(0, (0, 5))
    for steps in told.values():
        total = steps[0][1]
        assert steps == [(done, total) for done in range(total + 1)]


def test_runs_of_layers_are_reported(report: DepthReport) -> None:
    said = as_if_it_had_learned(report)
    assert any("2 consecutive layers that are cheapest to remove together" in one for one in said)


def as_if_it_had_learned(report: DepthReport) -> list[str]:
    """What would be said of the layers of a model that is below token frequencies by a nat."""
    (found,) = report.models
    over = replace(found.series[OVER_TOKEN_FREQUENCIES], estimates=[Estimate(-1.0, (-1.1, -0.9))])
    return presented(replace(found, series={**found.series, over.name: over}), all_entries()).findings


def test_a_model_without_word_order_gets_no_verdict(data: PreparedData, report: DepthReport) -> None:
    (found,) = report.models
    assert not found.has_learned
    assert found.dead_layers == []
    assert report.headline.endswith("has not learned word order, so its 4 layers get no verdict")
    assert "The model has not learned word order on this text: its loss, " in found.findings[0]
    said = " ".join(found.findings)
    assert not any(words in said for words in ("dead weight", "cheapest", "costliest", "turn"))
    assert found.series["removal"].values  # measured all the same
    learned = as_if_it_had_learned(report)
    assert learned[0].startswith("The model has learned word order")
    assert any("dead weight" in one for one in learned)

    windows = text_windows(data.tokenizer, TEXTS, SMALL.sequence_length, SMALL.max_tokens, 100, special_tokens=False)
    rows = first_tokens(text_batches(windows, 1, 0, predicts_next=True), SMALL.performance_tokens)
    targets = [token for row in rows if row.targets is not None for token in row.targets.flatten().tolist()]
    shares = [count / (len(targets) - targets.count(-100)) for token, count in Counter(targets).items() if token >= 0]
    entropy = -sum(share * math.log(share) for share in shares)
    assert found.series["token_frequencies"].values == [pytest.approx(entropy)]
    assert found.series["model_loss"].values == [pytest.approx(found.series["performance"].values[0], rel=1e-5)]
    assert found.series[OVER_TOKEN_FREQUENCIES].values == [
        pytest.approx(found.series["model_loss"].values[0] - entropy)
    ]


class FrequenciesAlone(nn.Module):
    """Gives the log of how frequent each token is, wherever it stands; the blocks stay."""

    def __init__(self, model: nn.Module, frequencies: torch.Tensor) -> None:
        super().__init__()
        self.model, self.frequencies = model, frequencies

    def forward(self, input_ids: torch.Tensor, **arguments: object) -> SimpleNamespace:
        self.model(input_ids=input_ids, **arguments)
        return SimpleNamespace(logits=self.frequencies.log().expand(*input_ids.shape, -1))


@pytest.mark.parametrize("sharpened", [1.0, 0.5])
def test_the_best_model_of_frequencies_has_not_learned_word_order(
    model: nn.Module, data: PreparedData, sharpened: float
) -> None:
    """It knows the frequencies of the very tokens that it is measured on."""
    windows = text_windows(data.tokenizer, TEXTS, 32, 400, 100, special_tokens=False)
    batches = text_batches(windows, 4, 0, predicts_next=True)
    targets = torch.cat([batch.targets.flatten() for batch in batches if batch.targets is not None])
    counts = torch.bincount(targets[targets >= 0], minlength=len(data.tokenizer)).double() + 1e-9
    config = DiagnosisConfig(gradient_tokens=0, measures=("similarity", "removal"))
    alone = FrequenciesAlone(model, counts**sharpened / (counts**sharpened).sum())
    found = diagnose_batches(alone, batches, LanguageModelLoss(), config)
    assert found.series["model_loss"].values[0] >= found.series["token_frequencies"].values[0] - 1e-6
    assert not found.has_learned


def test_scores_of_ones_own_are_taken_without_each_layer(model: nn.Module, data: PreparedData) -> None:
    seen: list[list[int]] = []

    def score(model: nn.Module) -> float:
        with torch.no_grad(), recording(find_block_stack(model)) as record:
            model(input_ids=torch.arange(6)[None])
        states = record.hidden_states
        seen.append([layer for layer in range(4) if torch.equal(states[layer], states[layer + 1])])
        return float(len(seen))

    config = DiagnosisConfig(sequence_length=32, max_tokens=100, measures=("growth",), gradient_tokens=0)
    found = diagnose_model(model, data.tokenizer, TEXTS, config, scores={"quiz": score})
    assert seen == [[], [0], [1], [2], [3]]
    assert found.series["removal:quiz"].values == [-1.0, -2.0, -3.0, -4.0]
    assert len(find_block_stack(model).layers) == 4


HOSTILE = (
    "of_2",
    "of_x",
    "",
    "perplexity",
    "removal",
    "a:b",
    "score:of_2",
    "removal:quiz",
    "[red]<b>",
    "\N{SNOWMAN} x $\\q$",
)


def test_no_name_of_a_score_is_taken_for_a_measure(model: nn.Module, data: PreparedData, tmp_path: Path) -> None:
    config = replace(SMALL, measures=("removal",), gradient_tokens=0)
    plain = mixln.diagnose(model, data.tokenizer, TEXTS, config)
    scores = {name: lambda _, value=float(number): value for number, name in enumerate(HOSTILE)}
    report = mixln.diagnose(model, data.tokenizer, TEXTS, config, scores=scores)
    (found,), (expected,) = report.models, plain.models
    for number, name in enumerate(HOSTILE):
        assert found.series[f"score:{name}"].values == [number]
        assert found.series[f"removal:{name}"].values == [0.0] * 4
        assert sum(sentence.startswith(f"{name} ({name}): the whole model has") for sentence in found.findings) == 1
    assert {name: found.series[name] for name in expected.series} == expected.series
    assert len(found.series) == len(expected.series) + 2 * len(HOSTILE)
    assert [one for one in found.findings if one in expected.findings] == expected.findings
    assert [column.head for column in shown_columns(found)][-len(HOSTILE) :] == list(HOSTILE)
    _, *tables = layer_tables(found)
    assert [str(column.header) for table in tables for column in table.columns[1:]] == list(HOSTILE)
    assert {str(table.columns[0].header) for table in tables} == {"layer"}
    assert "<b>" not in report.save(tmp_path).read_text(encoding="utf-8")
    assert from_json((tmp_path / "report.json").read_text(encoding="utf-8"), DepthReport) == report
    assert not any(":" in name for name in expected.series)


def test_words_of_the_terminal_tables_are_whole(report: DepthReport) -> None:
    (model,) = report.models
    scores = ("arc_easy", "hellaswag", "winogrande_debiased", "openbookqa", "leaderboard_math_hard", "two words")
    values = model.series["removal"].estimates
    series = {f"removal:{name}": Series(f"removal:{name}", "layer", "accuracy", values) for name in scores}
    columns = [ColumnSpec(name, f"removal:{name}", "+.3f", "scores") for name in scores]
    overflowing = replace(model.series["perplexity_without"], estimates=[Estimate(2_697_282_328.0)] * 4)
    series |= model.series | {"perplexity_without": overflowing}
    shown = replace(model.shown, columns=[*model.shown.columns, *columns])
    tables = layer_tables(replace(model, series=series, shown=shown))
    assert len(tables) == 3
    console = Console(width=80)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    words = capture.get().split()
    assert {"perplexity", "feed-forward", "influence", "2,697,282,328", "words", *scores[:-1]} <= set(words)


def test_bands_are_named_where_there_are_intervals(report: DepthReport, tmp_path: Path) -> None:
    (model,) = report.models
    alone = {
        name: replace(one, estimates=[Estimate(value) for value in one.values]) for name, one in model.series.items()
    }
    pages = [replace(report, models=[one]).save(tmp_path).read_text() for one in (model, replace(model, series=alone))]
    for word in ("Bands", "Whiskers"):
        assert [f"{word} are 95 % confidence intervals" in page for page in pages] == [True, False]


def test_a_measure_is_added_by_one_file(
    model: nn.Module, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of the documentation."""
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "add-a-measure.md").read_text(encoding="utf-8")
    (tmp_path / "largest_channel.py").write_text(text.split("```")[1][7:])
    monkeypatch.setattr(measures, "__path__", [*measures.__path__, str(tmp_path)])
    _own_entries.cache_clear()
    try:
        report = mixln.diagnose(model, data.tokenizer, TEXTS, replace(SMALL, gradient_tokens=0))
    finally:
        _own_entries.cache_clear()
    (found,) = report.models
    with torch.no_grad(), recording(find_block_stack(model)) as record:
        model(input_ids=torch.tensor([data.tokenizer(TEXTS[0])["input_ids"][:32]]))
    assert len(found.series["largest_channel"].values) == len(record.hidden_states)
    assert found.series["largest_channel"].values[0] == pytest.approx(
        record.hidden_states[0].abs().amax(-1).mean().item(), rel=0.2
    )
    (column,) = (column for column in shown_columns(found) if column.head == "largest channel")
    shown = [row[1] for row in layer_rows(found, [column])]
    assert shown == [f"{value:.3f}" for value in found.series["largest_channel"].values[1:]]  # after each layer
    assert any(sentence.startswith("The largest channel is ") for sentence in found.findings)
    names = [figure.name for figure in report.figures]
    assert names.index("variance") < names.index("largest_channel") < names.index("shares")
    page = report.save(tmp_path / "out").read_text(encoding="utf-8")
    assert "A jump is a massive activation." in page
    assert (tmp_path / "out" / "figures" / "largest_channel.png").is_file()


def test_gradients_of_a_fresh_model_are_those_of_other_weights(model: nn.Module, data: PreparedData) -> None:
    weights = [parameter.clone() for parameter in model.parameters()]
    config = DiagnosisConfig(
        sequence_length=32, max_tokens=100, measures=("gradient_norm_at_init",), fresh_gradients=True
    )
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
    assert "log10_gradient_factor" in found.series
    assert len(found.series["sigma_on_stream"].values) == 6
    assert any("Post-LN" in sentence for sentence in found.findings)


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
    assert set(found.series) == {
        *("block_influence", "angular_distance", "variance", "rms", "norm", "jacobian_distance"),
    }
    assert len(found.notes) == 2


def made_up(removal: list[float], high: list[float | None], whole: float) -> ModelDiagnosis:
    estimates = [
        Estimate(value, None if end is None else (-end, end)) for value, end in zip(removal, high, strict=True)
    ]
    made_up = ModelDiagnosis(
        *("m", "M", "layers", "B", len(removal), 100, [10] * len(removal), 1, 1, 1, "loss"),
        series={
            "removal": Series("removal", "layer", "loss", estimates),
            "performance": Series("performance", "model", "loss", [Estimate(whole)]),
        },
    )
    return presented(made_up, all_entries())


def test_dead_weight_is_judged_at_the_upper_end_of_the_interval() -> None:
    found = made_up([0.01, 0.01, 0.5, -0.2], [0.02, 0.2, 0.6, -0.1], 3.0)
    assert found.dead_layers == [1, 4]
    assert "2 of 4 layers are dead weight" in found.findings[0]
    assert "1, 4; 20% of the parameters" in found.findings[0]
    alone = made_up([0.01, 0.01, 0.5], [None, None, None], 3.0)
    assert alone.dead_layers == [1, 2]
    assert "No layer is dead weight" in made_up([1.0], [None], 3.0).findings[0]


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
            if side == "left":  # with padding on the right, models find their positions themselves
                assert batch.arguments["position_ids"][row, own].tolist() == list(range(len(window.input_ids)))


def test_a_saved_report_is_complete(report: DepthReport, tmp_path: Path) -> None:
    page = report.save(tmp_path / "out")
    on_request = {"attribution", "patching", "entropy_neurons"}
    drawn = {figure.name for figure in report.figures} - on_request
    assert len(drawn) == len(report.figures) - 3 == 11
    assert {column.series for column in report.models[0].shown.columns} <= report.models[0].series.keys()
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in drawn for suffix in ("png", "svg")
    }
    text = page.read_text()
    assert text.count("<figure") == len(drawn)
    assert all((figure.title in text) == (figure.name in drawn) for figure in report.figures)
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
    assert found.models[0].model == tmp_path.name


def test_an_encoder_decoder_is_measured_by_its_encoder_alone(data: PreparedData) -> None:
    sizes: dict[str, Any] = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 4,
    }
    torch.manual_seed(0)
    whole = T5Model(T5Config(vocab_size=len(data.tokenizer), **sizes)).eval()
    config = DiagnosisConfig(sequence_length=32, max_tokens=100, measures=("removal",), stack="encoder.block")
    found = diagnose_model(whole, data.tokenizer, TEXTS, config)
    assert (found.kind, found.layers_name) == ("T5Stack", "encoder.block")
    assert any("the encoder alone was run" in note for note in found.notes)
    alone = T5EncoderModel(T5Config(vocab_size=len(data.tokenizer), **sizes)).eval()
    alone.load_state_dict(whole.state_dict(), strict=False)
    other = diagnose_model(alone, data.tokenizer, TEXTS, config)
    assert found.series["removal"].values == pytest.approx(other.series["removal"].values, abs=1e-6)
    with pytest.raises(InputError, match=r"a T5Model cannot be run.*also takes decoder_input_ids"):
        diagnose_model(whole, data.tokenizer, TEXTS, replace(config, stack="decoder.block"))


def test_stages_of_different_widths_are_refused_and_each_measured_alone() -> None:
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4)
    torch.manual_seed(0)
    model = SwinModel(config).eval()
    batch = ModelBatch({"pixel_values": torch.randn(3, 3, 32, 32)}, None, None, torch.arange(3))
    with pytest.raises(InputError, match=r"stages of different widths.*encoder\.layers\.0\.blocks"):
        diagnose_batches(model, [batch], EmbeddingTurn(), SMALL)
    stage = DiagnosisConfig(measures=("removal",), stack="encoder.layers.0.blocks")
    assert len(diagnose_batches(model, [batch], EmbeddingTurn(), stage).series["removal"].values) == 2


def test_images_that_make_one_row_are_run_alone() -> None:
    """Also if the first batch is of one image."""
    torch.manual_seed(0)
    shape = PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = PixtralVisionModel(shape).eval()
    pixels = torch.randn(3, 3, 32, 32)
    config = DiagnosisConfig(measures=("removal",))
    parts = {
        cuts: [
            ModelBatch({"pixel_values": pixels[start:end]}, None, None, torch.arange(start, end)) for start, end in cuts
        ]
        for cuts in (((0, 1), (1, 2), (2, 3)), ((0, 1), (1, 3)), ((0, 3),))
    }
    alone, *others = (
        diagnose_batches(model, batches, EmbeddingTurn(), config).series["removal"].values for batches in parts.values()
    )
    assert all(values == pytest.approx(alone) for values in others)


def test_a_base_model_whose_base_is_an_encoder_is_whole() -> None:
    config = DINOv3ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    )
    torch.manual_seed(0)
    batch = ModelBatch({"pixel_values": torch.randn(2, 3, 32, 32)}, None, None, torch.arange(2))
    found = diagnose_batches(DINOv3ViTModel(config).eval(), [batch], EmbeddingTurn(), SMALL)
    assert len(found.series["removal"].values) == 3


def bert_of(classes: type[PreTrainedModel], **fields: Any) -> PreTrainedModel:
    sizes: dict[str, Any] = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    torch.manual_seed(0)
    return classes(BertConfig(**sizes, num_attention_heads=4, initializer_range=0.2, **fields)).eval()


def test_heads_are_left_aside_and_scores_see_them(data: PreparedData) -> None:
    """By either name of the list, with scores and without."""
    model = bert_of(BertForSequenceClassification)
    base: Any = model.base_model
    config = DiagnosisConfig(measures=("removal",), sequence_length=32, stack="encoder.layer")
    expected = diagnose_model(base, data.tokenizer, TEXTS, config).series["removal"].values
    seen: list[str] = []

    def score(whole: nn.Module) -> float:
        seen.append(type(whole).__name__)
        return 1.0

    for layers in (None, "encoder.layer", "bert.encoder.layer"):
        found = diagnose_model(
            model, data.tokenizer, TEXTS, replace(config, stack=layers), scores={"own": score} if layers else None
        )
        assert found.layers_name == "bert.encoder.layer"
        assert found.series["removal"].values == expected
    assert {*seen} == {"BertForSequenceClassification"}


@pytest.mark.parametrize("is_decoder", [False, True])
def test_a_loss_of_what_is_seen_is_told_of(is_decoder: bool, data: PreparedData) -> None:
    config = DiagnosisConfig(measures=("removal",), sequence_length=32)
    found = diagnose_model(bert_of(BertLMHeadModel, is_decoder=is_decoder), data.tokenizer, TEXTS, config)
    assert any("sees the whole text" in note for note in found.notes) is not is_decoder


def test_rows_that_padding_changes_are_run_alone() -> None:
    """FNet takes no mask: it mixes what stands in the padding into every token."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    model = FNetModel(FNetConfig(**sizes, max_position_embeddings=64)).eval()
    ids = torch.randint(3, 61, (2, 12))
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    kinds = {"token_type_ids": torch.zeros_like(ids)}
    batch = ModelBatch({"input_ids": ids, "attention_mask": mask.long(), **kinds}, mask, None, torch.arange(2))
    config = DiagnosisConfig(measures=("removal",))
    found = diagnose_batches(model, [batch], EmbeddingTurn(), config)
    rows = [
        ModelBatch({"input_ids": ids[row : row + 1, :length]}, mask[row : row + 1, :length], None, torch.tensor([row]))
        for row, length in enumerate((12, 7))
    ]
    alone = diagnose_batches(model, rows, EmbeddingTurn(), config)
    assert found.series["removal"].values == pytest.approx(alone.series["removal"].values, abs=1e-7)
    assert any("every row was run alone" in note for note in found.notes)
