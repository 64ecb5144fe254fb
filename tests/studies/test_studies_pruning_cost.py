"""What removing layers costs is what the pruned folder loses, and bad news are told in words."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import save_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixln.cli import main
from mixln.data import PreparedData, open_corpus
from mixln.records import decode
from mixln.report.pruning_cost import PruningCost
from mixln.report.series import Estimate
from mixln.studies.diagnose import diagnose_model
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.pruning_request import PruningRecord

SIZES = ["--sequence-length", "32", "--max-tokens", "400"]
CONFIG = DiagnosisConfig(sequence_length=32, max_tokens=400, performance_tokens=400, measures=("removal",))


@pytest.mark.parametrize("choice", [["--layers", "2,4"], ["--drop", "2"], ["--drop", "2", "--by", "angular"]])
def test_the_loss_before_and_after_is_that_of_both_folders(
    choice: list[str], data: PreparedData, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = save_tiny_llama(tmp_path / "llama", data.tokenizer, 5), tmp_path / "out"
    assert main(["prune", str(source), str(out), *choice, "--text", str(corpus), *SIZES]) == 0
    shown = capsys.readouterr().out
    record = decode(PruningRecord, json.loads((out / "pruning.json").read_text()), "pruning.json")
    assert record.criterion == {"--layers": None, "--drop": "removal"}[choice[0]] or choice[-1] == "angular"
    cost, texts = record.cost, list(open_corpus(str(corpus)).first(256))
    assert cost is not None
    for folder, expected in ((source, cost.before), (out, cost.after)):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        (found,) = diagnose_model(model, tokenizer, texts, CONFIG).series["performance"].estimates
        assert expected.value == pytest.approx(found.value, abs=1e-6)
        assert expected.interval == pytest.approx(found.interval, abs=1e-6)
        assert expected.format(".4f") in shown
    assert cost.difference.value == pytest.approx(cost.after.value - cost.before.value)
    assert f"on {cost.tokens:,} tokens" in shown
    assert cost.unit == "loss, nats per token"


def test_token_frequencies_are_those_of_the_predicted_tokens(data: PreparedData, tmp_path: Path) -> None:
    text = "The assert statement is a convenient way to insert debugging assertions into a program. " * 4
    (tmp_path / "text.txt").write_text(text)
    source = save_tiny_llama(tmp_path / "llama", data.tokenizer, 3)
    command = ["prune", str(source), str(tmp_path / "out"), "--layers", "2", "--text", str(tmp_path / "text.txt")]
    assert main([*command, "--sequence-length", "1000", "--max-tokens", "50"]) == 0
    cost = json.loads((tmp_path / "out" / "pruning.json").read_text())["cost"]
    counts = Counter(data.tokenizer(text).input_ids[:50][1:])
    assert cost["tokens"] == sum(counts.values()) == 49
    entropy = -sum(count / 49 * math.log(count / 49) for count in counts.values())
    assert cost["frequencies"] == pytest.approx(entropy)


def test_named_layers_are_removed_where_nothing_can_be_measured(
    data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_tiny_llama(tmp_path / "llama", data.tokenizer, 3)
    for file in source.glob("tokenizer*"):
        file.unlink()
    assert main(["prune", str(source), str(tmp_path / "out"), "--layers", "2"]) == 0
    assert "the cost of removing these layers was not measured: cannot load tokenizer" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "pruning.json").read_text())["cost"] is None


GOOD = PruningCost("loss", Estimate(3.0, (2.9, 3.1)), Estimate(3.4), Estimate(0.4, (0.3, 0.5)), 7.0, 1234)


def test_the_sentence_has_the_numbers_and_their_intervals() -> None:
    assert GOOD.sentence == (
        "loss, on 1,234 tokens: 3.0000 [2.9000, 3.1000] before, 3.4000 after (+0.4000 [+0.3000, +0.5000])"
    )


@pytest.mark.parametrize(
    ("after", "frequencies", "words"),
    [
        (3.4, 7.0, None),
        (5.0, 7.0, None),
        (
            5.2,
            7.0,
            "55% of what the model knows beyond token frequencies is lost (token frequencies alone have 7",
        ),
        (7.0, 7.0, "the pruned model writes noise until it is trained further: token frequencies alone have 7.0000"),
        (11.0, 7.0, "writes noise"),
        (math.inf, 7.0, "gives no finite numbers"),
        (math.nan, None, "gives no finite numbers"),
        (11.0, None, None),  # how far an embedding turns has no such constant
        (3.2, 2.9, None),  # nor has a model that has learned nothing
    ],
)
def test_bad_news_are_told_in_words(after: float, frequencies: float | None, words: str | None) -> None:
    difference = Estimate(after - GOOD.before.value)
    cost = replace(GOOD, after=Estimate(after), difference=difference, frequencies=frequencies)
    assert (cost.warning is None) if words is None else (words in str(cost.warning))
