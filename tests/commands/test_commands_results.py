"""Results: the same numbers from Python and from the command line, as a table, as a frame, in a notebook, on disk."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import mixln
from mixln.cli import main
from mixln.data.corpora import open_corpus
from mixln.training import TrainedModel

TINY: dict[str, Any] = {
    "steps": 4,
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "sequence_length": 16,
    "vocab_size": 300,
    "batch_size": 2,
    "max_tokens": 3000,
    "max_validation_tokens": 500,
}
MEASURED: dict[str, Any] = {"sequence_length": 16, "max_tokens": 300, "performance_tokens": 100, "gradient_tokens": 0}


def options(arguments: dict[str, Any]) -> list[str]:
    return [text for name, value in arguments.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(corpus: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return mixln.train(out=tmp_path_factory.mktemp("python"), text=corpus, cache=cache, placement="mix", **TINY)


def check_shown(result: Any, words: str) -> None:
    """That a result is shown with these words by `print`, in a terminal, in a notebook; and in a line by `repr`."""
    assert words in " ".join(str(result).split())
    bundle = result._repr_mimebundle_([], [])
    assert words in " ".join(bundle["text/plain"].split())
    assert "<pre" in bundle["text/html"]
    assert re.fullmatch(rf"<{type(result).__name__}: .+>", repr(result))
    json.dumps(result.to_dict(), allow_nan=False)


def test_python_and_the_command_line_train_the_same_model(
    run: TrainedModel, corpus: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {name: value for name, value in TINY.items() if name in ("steps", "batch_size", "sequence_length")}
    others = {
        "model.num_hidden_layers": 3,
        "model.hidden_size": 16,
        "model.intermediate_size": 24,
        "model.num_attention_heads": 2,
        "data.vocab_size": 300,
        "data.max_tokens": 3000,
        "data.max_validation_tokens": 500,
    }
    given = options({"out": tmp_path, "text": corpus, "cache": cache, "placement": "mix", **sizes})
    assert main(["train", *given, *(text for name, value in others.items() for text in (f"--{name}", str(value)))]) == 0
    for file in ("model/model.safetensors", "recipe.json"):
        assert (tmp_path / file).read_bytes() == (run.folder / file).read_bytes()
    # and what the command prints is what the result prints
    assert capsys.readouterr().out.replace(str(tmp_path), str(run.folder)) == f"{run}\n"


def test_a_run_is_a_result(run: TrainedModel, tmp_path: Path) -> None:
    check_shown(run, f"validation loss {run.validation.mean:.4f}, perplexity ")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    frame = run.to_frame()
    assert list(frame["step"]) == [1, 2, 3, 4]
    assert list(frame["loss"]) == [line["loss"] for line in lines]
    copied = run.save(tmp_path / "copy")
    assert run.saved == copied
    assert AutoModelForCausalLM.from_pretrained(copied).config.placement == "mix(alpha=0.25)"


def test_nothing_is_shown_unless_it_is_asked_for(
    run: TrainedModel, corpus: Path, cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = run.model, AutoTokenizer.from_pretrained(run.folder / "model")
    capfd.readouterr()
    texts = open_corpus(str(corpus)).first(5)
    mixln.diagnose(model, tokenizer, texts, only=["removal"], **MEASURED)
    mixln.prune(model, tmp_path / "pruned", tokenizer=tokenizer, layers=[2], text=corpus, max_tokens=200)
    mixln.generate(tmp_path / "pruned", "A", max_new_tokens=2)
    mixln.train(out=tmp_path / "quiet", text=corpus, cache=cache, **TINY)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")
    mixln.train(out=tmp_path / "loud", text=corpus, cache=cache, progress=True, **TINY)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "pre" in shown.err


def test_a_comparison_is_a_frame_of_its_runs(
    corpus: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = mixln.compare(schemes=["pre", "post"], seeds=range(2), out=tmp_path, text=corpus, cache=cache, **TINY)
    assert capsys.readouterr().out == ""
    assert comparison.saved == tmp_path / "report.html"
    check_shown(comparison, comparison.runs[0].placement)
    frame: Any = comparison.to_frame()
    written = json.loads((tmp_path / "results.json").read_text())
    assert comparison.to_dict() == written
    assert list(frame["validation_loss"]) == [run["validation_loss"] for run in written["runs"]]
    means = frame.groupby("placement")["validation_loss"].mean()
    assert {one.placement: pytest.approx(one.loss_mean) for one in comparison.summaries} == dict(means)


def test_a_model_in_memory_is_diagnosed_and_pruned_as_its_folder_is(
    run: TrainedModel, corpus: Path, tmp_path: Path
) -> None:
    folder = run.folder / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = open_corpus(str(corpus)).first(256)
    only = ["removal", "growth"]
    command = ["diagnose", str(folder), "--text", str(corpus), "--out", str(tmp_path / "report"), "--only", *only]
    assert main([*command, *options(MEASURED)]) == 0
    report = mixln.diagnose([model, folder], tokenizer, texts, only=only, **MEASURED)
    assert [one.model for one in report.models] == [run.folder.name, f"{run.folder.name} (2)"]
    (expected,) = json.loads((tmp_path / "report" / "report.json").read_text())["models"]
    for found in report.to_dict()["models"]:
        assert found["series"] == expected["series"]
    check_shown(report, "3 layers")
    frame = report.to_frame()
    assert list(frame["layer"]) == [1, 2, 3, 1, 2, 3]
    removal = [one["value"] for one in expected["series"]["removal"]["estimates"]]
    assert list(frame["removal"]) == removal * 2
    variance = [one["value"] for one in expected["series"]["variance"]["estimates"]]
    assert list(frame["variance"])[:3] == variance[1:], "of the state after each layer"
    assert report.save(tmp_path / "again") == tmp_path / "again" / "report.html"

    measured = {"text": corpus, "sequence_length": 16, "max_tokens": 200}
    own = mixln.prune(model, str(tmp_path / "own"), tokenizer=tokenizer, drop=1, **measured)
    whole = mixln.prune(folder, tmp_path / "whole", drop=1, **measured)
    assert own.removed_layers == whole.removed_layers
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "own.source").exists()
    check_shown(own, f"removed 1 of 3 layers: {own.removed_layers[0]} (counted from 1)")
    assert whole.record.cost is not None
    assert own.to_frame().loc[0, "before"] == whole.record.cost.before.value
    assert own.model.config.num_hidden_layers == 2
    assert own.save(tmp_path / "copy") == tmp_path / "copy"
    assert (tmp_path / "copy" / "pruning.json").exists()


def test_layers_are_named_as_on_the_command_line(run: TrainedModel, corpus: Path, tmp_path: Path) -> None:
    folder = run.folder / "model"
    given = {"text": corpus, "sequence_length": 16, "max_tokens": 200}
    for number, layers in enumerate(([2, 3], (2, 3), "2-3", "3,2")):
        pruned = mixln.prune(folder, tmp_path / str(number), layers=layers, **given)
        assert sorted(pruned.removed_layers) == [2, 3]


def test_an_estimate_is_a_frame_of_its_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    estimate = mixln.estimate(recipe="71m", device="h100", count=2)
    check_shown(estimate, "70,578,688")
    frame = estimate.to_frame()
    assert list(frame["total_bytes"]) == [plan.memory.total for plan in estimate.plans]
    assert main(["estimate", "--recipe", "71m", "--device", "h100", "--count", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == estimate.to_dict()
    assert json.loads(estimate.save(tmp_path).read_text()) == estimate.to_dict()


def test_prepared_data_and_exports_are_results(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = mixln.prepare_data(text=corpus, out=tmp_path / "data", **TINY)
    check_shown(data, "training: ")
    assert list(data.to_frame()["split"]) == ["training", "validation"]
    pre = mixln.train(out=tmp_path / "pre", text=tmp_path / "data", **TINY)
    stock = mixln.convert(pre.folder / "model", tmp_path / "stock", to="hf")
    check_shown(stock, "LlamaForCausalLM")
    assert type(stock.model).__name__ == "LlamaForCausalLM"
    assert stock.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(pre.folder / "model").get_vocab()
    assert capsys.readouterr().out == ""


def test_a_frame_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        mixln.estimate(recipe="71m", device="h100").to_frame()
