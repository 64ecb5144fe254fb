"""`mixln diagnose` and `mixln prune` as their user meets them."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from measure_architectures import ARCHITECTURES
from tiny import save_tiny_llama
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from mixln.cli import main
from mixln.data import PreparedData
from mixln.models.anatomy import find_block_stack
from mixln.progress import TrainingProgress
from mixln.studies.measured_models import display_names
from mixln.studies.work_folder import LOCK_FILE
from tasks import make_items, write_task

FAST = ["--sequence-length", "32", "--max-tokens", "300", "--performance-tokens", "100", "--gradient-tokens", "64"]


@pytest.fixture(scope="module")
def llama(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), data.tokenizer, 5, num_key_value_heads=2)


def test_diagnose_shows_layers_and_writes_a_report(
    llama: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["diagnose", str(llama), "--text", str(corpus), "--out", str(out), *FAST]) == 0
    shown = capsys.readouterr().out
    assert "LlamaForCausalLM, 5 layers" in shown
    assert "has not learned word order on this text" in " ".join(shown.split())  # its weights are drawn
    assert "report.html" in shown
    report = json.loads((out / "report.json").read_text())
    assert report["models"][0]["model"] == llama.name
    assert report["command"].startswith("mixln diagnose")
    assert len(list((out / "figures").glob("*.png"))) == 9


def test_a_report_is_replaced_with_a_word(
    llama: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["diagnose", str(llama), "--text", str(corpus), "--out", str(tmp_path), "--only", "growth", *FAST]
    assert main(command) == 0
    assert "Replacing" not in capsys.readouterr().err
    assert main(command) == 0
    assert f"Replacing the report in {tmp_path}" in capsys.readouterr().err


def test_a_model_is_shared_out_over_devices(
    llama: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate", reason="a device_map needs accelerate")
    found: list[object] = []
    for options in ([], ["--device-map", "auto"]):
        out = tmp_path / "-".join(options)
        given = ["--text", str(corpus), "--out", str(out), "--only", "removal", "--without", "swap", *FAST[:4]]
        assert main(["diagnose", str(llama), *given, *options]) == 0, capsys.readouterr().err
        found.append(json.loads((out / "report.json").read_text())["models"][0]["series"])
    assert found[0] == found[1]


def test_diagnose_scores_tasks_without_each_layer(
    llama: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="needs mixln[evaluation]")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    write_task(tmp_path / "tasks", make_items())
    tasks = ["--tasks", "words", "--task-path", str(tmp_path / "tasks"), "--task-limit", "12"]
    measured = ["--only", "removal", "--out", str(tmp_path / "out"), *FAST]
    assert main(["diagnose", str(llama), "--text", str(corpus), *tasks, *measured]) == 0
    shown = capsys.readouterr()
    assert "words (acc of words): the whole model has" in " ".join(shown.out.split())
    assert "Running" not in shown.err
    series = json.loads((tmp_path / "out" / "report.json").read_text())["models"][0]["series"]
    assert len(series["removal:words"]["estimates"]) == 5
    assert (tmp_path / "out" / "figures" / "score_removal.png").is_file()
    assert main(["diagnose", str(llama), *tasks, "--task-metric", "f1", *measured]) == 2
    assert "the task words has no metric 'f1'. It has: acc, acc_norm" in capsys.readouterr().err
    BertModel(BertConfig(vocab_size=400, hidden_size=8, num_hidden_layers=2, num_attention_heads=1)).save_pretrained(
        tmp_path / "bert"
    )
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "bert")
    assert main(["diagnose", str(tmp_path / "bert"), "--text", str(corpus), *tasks, *measured]) == 2
    assert "a causal language model, and a BertModel is not one" in capsys.readouterr().err


def test_tasks_without_the_harness_are_one_message(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    monkeypatch.setattr("mixln.hub._reason_to_stay_offline", lambda: None)
    assert main(["diagnose", str(llama), "--tasks", "words", "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("mixln: tasks need lm-evaluation-harness")
    assert "pip install 'mixln[evaluation]'" in message


@pytest.mark.slow
def test_an_unknown_task_is_one_message(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixln.hub._reason_to_stay_offline", lambda: None)
    pytest.importorskip("lm_eval", reason="needs mixln[evaluation]")
    assert main(["diagnose", str(llama), "--tasks", "acr_easy", "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("mixln: there is no task 'acr_easy'")
    assert "Did you mean 'arc_easy'" in message


def test_an_interrupted_diagnosis_leaves_what_it_had_measured(
    llama: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mixln.studies.measures.gradient_norm.gradient_norms", interrupt)
    assert main(["diagnose", str(llama), "--text", str(corpus), "--out", str(tmp_path), *FAST]) == 130
    assert f"interrupted: every finished measure is kept in {tmp_path}. Run the same" in capsys.readouterr().err
    (found,) = json.loads((tmp_path / "report.json").read_text())["models"]
    assert {"removal", "block_influence"} <= found["series"].keys()
    assert "gradient_norm" not in found["series"]
    assert "did not come to its end" in found["notes"][-1]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["runs/a/model", "runs/b/model", "other", "org/name"], ["a", "b", "other", "org/name"]),
        (["runs/a/model"], ["a"]),
        (["runs/a", "runs/b"], ["a", "b"]),
        (["sweep/lr1/seed0/model", "sweep/lr3/seed0/model"], ["lr1", "lr3"]),
        (["x/lr1/seed0", "x/lr1/seed1", "x/lr3/seed0"], ["lr1/seed0", "lr1/seed1", "lr3/seed0"]),
        (["a/model", "a/model-8-bit"], ["a", "model-8-bit"]),
    ],
)
def test_models_are_called_by_what_tells_them_apart(tmp_path: Path, folders: list[str], expected: list[str]) -> None:
    paths = [name if name == "org/name" else str(tmp_path / name) for name in folders]
    for path in paths:
        if path != "org/name":
            Path(path).mkdir(parents=True, exist_ok=True)
    assert display_names(paths) == expected


def test_models_have_the_names_that_they_are_given(
    llama: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["diagnose", str(llama), "--text", str(corpus), "--out", str(tmp_path), *FAST]
    assert main([*arguments, "--names", "one", "two"]) == 2
    assert "--names has 2 entries, but there are 1 models" in capsys.readouterr().err
    assert main([*arguments, "--names", "mine"]) == 0
    (found,) = json.loads((tmp_path / "report.json").read_text())["models"]
    assert found["model"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "removed"),
    [
        (["--layers", "2-3"], [2, 3]),
        (["--layers", "1,4-5"], [1, 4, 5]),
        (["--drop", "2"], None),
        (["--drop", "2", "--any"], None),
        (["--drop", "2", "--by", "removal"], None),
        (["--drop", "2", "--by", "removal", "--consecutive"], None),
        (["--drop", "1", "--by", "influence"], None),
    ],
)
def test_prune_writes_a_stock_model_that_generates(
    llama: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    removed: list[int] | None,
) -> None:
    out = tmp_path / "out"
    measured = ["--text", str(corpus), "--sequence-length", "32", "--max-tokens", "200"]
    assert main(["prune", str(llama), str(out), *arguments, *measured]) == 0
    shown = capsys.readouterr()
    record = json.loads((out / "pruning.json").read_text())
    chosen = record["removed_layers"]
    assert record["num_layers_before"] == 5
    assert chosen == (removed or sorted(chosen))
    assert f"removing {len(chosen)} of 5 layer" in shown.err
    assert f"removed {len(chosen)} of 5 layers: {', '.join(map(str, chosen))} (counted from 1)" in shown.out
    assert ", ".join(f"model.layers[{layer - 1}]" for layer in chosen) in shown.err
    if record["consecutive"]:
        assert chosen == list(range(chosen[0], chosen[0] + 2))
    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model) is LlamaForCausalLM
    assert len(find_block_stack(model).layers) == 5 - len(chosen)
    whole = AutoModelForCausalLM.from_pretrained(llama)
    kept = [layer for number, layer in enumerate(whole.model.layers, start=1) if number not in chosen]
    for one, other in zip(model.model.layers, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    tokens = AutoTokenizer.from_pretrained(out)("The assert statement", return_tensors="pt")
    cached, uncached = (
        model.generate(**tokens, max_new_tokens=4, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, uncached)


BAD = {
    "diagnose {tmp}/nothing": "there is no folder",
    "diagnose {tmp}/empty": "has no config.json",
    "diagnose {model} --text {tmp}/nothing": "nothing",
    "diagnose {model} --text {tmp}/short.txt": "less than one window",
    "diagnose {model} --text {tmp}/empty": "no usable document",
    "diagnose {model} --layers model.blocks": "model.blocks: is not there",
    "diagnose {model} {model}": "named twice",
    "diagnose {model} --only angle": "no measure 'angle'",
    "diagnose {model} --without gradients": "no measure 'gradients'. Did you mean 'gradient_norm'?",
    "diagnose {model} --task-limit 5": "name some with --tasks",
    "diagnose {model} --tasks a a": "a task is named twice",
    "diagnose {model} --tasks a --task-limit 0": "--task-limit must be at least 1",
    "diagnose {model} --tasks a --task-path {tmp}/nothing": "there is no folder",
    "diagnose {model} --sequence-length 1": "--sequence-length must be at least 2",
    "diagnose {model} --out {tmp}/short.txt/x": "cannot be written",
    "prune {model} {tmp}/out": "give either --layers or --drop",
    "prune {model} {tmp}/out --layers 2 --drop 1": "--layers and --drop contradict each other",
    "prune {model} {tmp}/out --layers 2 --by angular": "--layers and --by contradict each other",
    "prune {model} {tmp}/out --layers 0": "counted from 1",
    "prune {model} {tmp}/out --layers 4-2": "ends before it begins",
    "prune {model} {tmp}/out --layers two": "is no layer",
    "prune {model} {tmp}/out --layers 6": "there is no layer 6: the model has layers 1 to 5",
    "prune {model} {tmp}/out --layers 1-5": "all 5 layers would be removed",
    "prune {model} {tmp}/out --layers 2,2": "layer 2 is named twice",
    "prune {model} {tmp}/out --drop 5": "all 5 layers would be removed",
    "prune {model} {tmp}/out --drop 0": "--drop must be at least 1, not 0",
    "prune {model} {tmp}/out --drop 1 --by size": "--by size is not known",
    "prune {model} {tmp}/full --layers 2": "exists already",
    "prune {tmp}/nothing {tmp}/out --layers 2": "there is no folder",
    "prune {model} {tmp}/out --layers 2 --any": "contradict each other",
    "prune {model} {tmp}/out --layers 1-99999999999": "there is no layer 99999999999",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message(case: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("A word or two.")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    arguments = case.format(model=llama, tmp=tmp_path).split()
    if arguments[0] == "diagnose" and "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "report")]
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("mixln: ")
    assert BAD[case] in message
    assert not (tmp_path / "out").exists()


HEALING = ["--healing.tokens", "1500", "--healing.sequence-length", "32", "--healing.batch-size", "4"]


@pytest.fixture
def prune_and_heal(llama: Path, corpus: Path, tmp_path: Path) -> list[str]:
    measured = [
        "--text",
        str(corpus),
        "--sequence-length",
        "32",
        "--max-tokens",
        "200",
        "--cache",
        str(tmp_path / "cache"),
    ]
    return ["prune", str(llama), str(tmp_path / "out"), "--drop", "2", *measured, "--heal", *HEALING]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_heal_reports_losses_and_writes_a_stock_model(
    prune_and_heal: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    rate = {"full": "3e-3", "lora": "3e-2"}[method]
    assert main([*prune_and_heal, "--healing.method", method, "--healing.learning-rate", rate]) == 0
    shown = capsys.readouterr()
    assert "removing 2 of 5 layers" in shown.err
    assert " after healing on " in shown.out
    out = tmp_path / "out"
    report, record = (json.loads((out / name).read_text()) for name in ("healing.json", "pruning.json"))
    assert len(record["removed_layers"]) == 2
    assert f"{report['loss_healed']:.4f} after healing" in shown.out
    assert report["loss_healed"] < report["loss_pruned"]
    assert report["train_tokens"] >= 1500
    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model) is LlamaForCausalLM
    assert len(find_block_stack(model).layers) == 3
    # the model before healing, and what the run told
    assert len(find_block_stack(AutoModelForCausalLM.from_pretrained(tmp_path / "out.healing" / "pruned")).layers) == 3
    assert (tmp_path / "out.healing" / "metrics.jsonl").is_file()


@pytest.mark.slow
def test_an_interrupted_healing_goes_on_by_the_same_command(
    prune_and_heal: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_bar: TrainingProgress, step: int, *_: float) -> None:
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingProgress, "step", interrupt)
    assert main(prune_and_heal) == 130
    assert "Run the same command again to go on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    # another request does not go on with it
    changed = [argument if argument != "1500" else "1600" for argument in prune_and_heal]
    others = {
        "tokens was 1500, is 1600": changed,
        "consecutive was False, is True": [*prune_and_heal, "--consecutive"],
        "window was 32, is 16": [*prune_and_heal, "--sequence-length", "16"],
    }
    for words, other in others.items():
        assert main(other) == 2
        assert words in capsys.readouterr().err
    three = [argument if argument != "2" else "3" for argument in prune_and_heal]
    assert main(three) == 2
    assert "2 layers were removed, are to be 3" in capsys.readouterr().err
    monkeypatch.setattr("mixln.studies.prune_and_heal.select_layers", None)  # it is not measured again
    assert main(prune_and_heal) == 0
    lines = (tmp_path / "out.healing" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))
    # called again, it says so, and what it came to
    capsys.readouterr()
    assert main(prune_and_heal) == 0
    shown = capsys.readouterr()
    assert "finished:   already, at step 12; nothing to do" in shown.err
    assert " after healing on " in shown.out
    assert main(changed) == 2
    assert "out exists already, and holds another healing (tokens was 1500, is 1600)" in capsys.readouterr().err


def test_an_interrupted_pruning_has_written_nothing(
    llama: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mixln.studies.pruned_folder.write_shorter_weights", interrupt)
    command = ["prune", str(llama), str(tmp_path / "out"), "--layers", "2", "--text", str(corpus)]
    assert main([*command, "--sequence-length", "32", "--max-tokens", "200"]) == 130
    assert capsys.readouterr().err.endswith("mixln: interrupted: nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_healed_is_told_at_once(
    prune_and_heal: list[str], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(llama), str(tmp_path / "out"), "--layers", "2", *HEALING]) == 2
    assert "--healing options need --heal" in capsys.readouterr().err
    assert main([*prune_and_heal, "--healing.tokens", "0"]) == 2
    assert "healing.tokens must be more than 0" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    position = prune_and_heal.index("--heal") + 1
    assert main([*prune_and_heal[:position], str(tmp_path / "empty"), *prune_and_heal[position:]]) == 2
    assert str(tmp_path / "empty") in capsys.readouterr().err
    encoder = tmp_path / "encoder"
    ARCHITECTURES["bert"].build().save_pretrained(encoder)
    AutoTokenizer.from_pretrained(llama).save_pretrained(encoder)
    assert main(["prune", str(encoder), *prune_and_heal[2:]]) == 2
    assert "predicts no next token" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_a_healing_that_is_damaged_or_in_use_is_told(
    prune_and_heal: list[str], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out.healing"
    folder.mkdir()
    with FileLock(folder / LOCK_FILE):
        assert main(prune_and_heal) == 2
    assert "another process works in" in capsys.readouterr().err
    (folder / "pruned").mkdir()
    record = {"source": str(llama), "removed_layers": [1, 2], "num_layers_before": 5}
    (folder / "pruned" / "pruning.json").write_text(json.dumps({**record, "criterion": None, "consecutive": False}))
    (folder / "healing.json").write_text('{"text": 1}')
    assert main(prune_and_heal) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_model_whose_layers_depend_on_their_place_is_not_pruned_wrongly(
    data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = GPT2Config(
        vocab_size=len(data.tokenizer), n_embd=32, n_layer=4, n_head=4, scale_attn_by_inverse_layer_idx=True
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    data.tokenizer.save_pretrained(tmp_path / "gpt2")
    assert main(["prune", str(tmp_path / "gpt2"), str(tmp_path / "out"), "--layers", "1-2"]) == 2
    assert "sets each layer from its place cannot express this" in capsys.readouterr().err
    # what is before them stays where it was
    assert main(["prune", str(tmp_path / "gpt2"), str(tmp_path / "out"), "--layers", "3-4"]) == 0


@pytest.mark.parametrize("criterion", ["angular", "removal"])
def test_a_classifier_is_pruned_by_what_its_encoder_does_and_keeps_its_head(
    llama: Path, corpus: Path, tmp_path: Path, criterion: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=3, num_attention_heads=1)
    source, out = tmp_path / "whole", tmp_path / "out"
    whole = BertForSequenceClassification(config)
    whole.save_pretrained(source)
    tokenizer.save_pretrained(source)
    measured = ["--text", str(corpus), "--sequence-length", "32", "--max-tokens", "200"]
    assert main(["prune", str(source), str(out), "--drop", "1", "--by", criterion, *measured]) == 0
    model = BertForSequenceClassification.from_pretrained(out)
    assert len(model.bert.encoder.layer) == 2
    assert torch.equal(model.classifier.weight, whole.classifier.weight)


def test_several_lists_of_layers_are_told_apart_by_the_option_that_prune_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: dict[str, Any] = {"vocab_size": 61, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 4}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    command = ["prune", str(tmp_path / "t5"), str(tmp_path / "out"), "--layers", "2"]
    assert main(command) == 2
    assert "--stack encoder.block" in capsys.readouterr().err


def test_what_measuring_says_of_the_list_of_layers_names_the_option_that_prune_has(
    llama: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    config = AlbertConfig(**sizes, vocab_size=400, num_hidden_layers=4, num_hidden_groups=2)
    AlbertModel(config).save_pretrained(tmp_path / "albert")
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "albert")
    command = ["prune", str(tmp_path / "albert"), str(tmp_path / "out"), "--drop", "1", "--text", str(corpus)]
    assert main([*command, "--sequence-length", "32", "--max-tokens", "200"]) == 2
    assert "name them with --stack" in capsys.readouterr().err
