"""Fine-tuning on examples: `mixln finetune` and `mixln.finetune`."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

import mixln
from mixln.cli import main
from mixln.data import PreparedData, train_tokenizer
from mixln.data.example_data import ExampleRequest
from mixln.errors import InputError
from mixln.studies.fine_tuned_model import REPORT_FILE, plan_fine_tuning, run_fine_tuning

SMALL: dict[str, Any] = {"batch_size": 2, "sequence_length": 48, "precision": "float32", "learning_rate": 1e-2}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def evenness(numbers: range) -> list[dict[str, str]]:
    return [{"prompt": f"is {number} even? ", "completion": ("yes", "no")[number % 2]} for number in numbers]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("examples") / "even.jsonl", evenness(range(60)))


@pytest.fixture(scope="module")
def llama(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), data.tokenizer, 2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def loss_of_answers(model: Any, tokenizer: Any, examples: list[dict[str, str]]) -> float:
    """Mean over the tokens of the answers, by the model's own forward, one example at a time."""
    total, count = 0.0, 0
    for example in examples:
        begin = tokenizer(example["prompt"])["input_ids"]
        ids = [*begin, *tokenizer(example["completion"])["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(logits[place - 1, ids[place]].item() for place in range(len(begin), len(ids)))
        count += len(ids) - len(begin)
    return total / count


def test_the_model_learns_the_answers_and_the_losses_are_those_of_its_folder(
    llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = evenness(range(60, 80))
    validation = write(tmp_path / "held_out.jsonl", held_out)
    out = tmp_path / "out"
    options = [
        "--batch-size",
        "2",
        "--sequence-length",
        "48",
        "--precision",
        "float32",
        "--lr",
        "1e-2",
        "--epochs",
        "3",
    ]
    command = ["finetune", str(llama), str(rows), "--validation-data", str(validation), "--out", str(out), *options]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "60 examples, 0 held out" in shown
    report = json.loads((out / REPORT_FILE).read_text())
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    for folder, name in ((llama, "loss_before"), (out / "model", "loss_after")):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert loss_of_answers(model, tokenizer, held_out) == pytest.approx(report[name], abs=1e-4)
    assert report["loss_after"] < report["loss_before"] - 1
    assert json.loads((out / "recipe.json").read_text())["model"]["pretrained"] == llama.name


def test_an_interrupted_run_ends_with_the_same_bits(llama: Path, rows: Path, tmp_path: Path) -> None:
    config = mixln.FineTuningConfig(epochs=2, checkpoint_every=2, **SMALL)
    request = ExampleRequest([str(rows)], validation_fraction=0.2)
    plan = plan_fine_tuning(str(llama), request, config)
    whole = run_fine_tuning(plan, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(step: int, *_: float) -> None:
        if step == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_fine_tuning(plan, tmp_path / "cut", stop)
    assert not (tmp_path / "cut" / "model").exists()
    again = run_fine_tuning(plan_fine_tuning(str(llama), request, config), tmp_path / "cut")
    assert again.report == whole.report
    found, expected = weights(again.folder), weights(whole.folder)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_low_rank_updates_are_merged(llama: Path, rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tuned = mixln.finetune(llama, rows, out=tmp_path / "out", method="lora", rank=4, **SMALL)
    before, after = weights(llama), weights(tuned.folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    assert tuned.report.loss_after < tuned.report.loss_before


@pytest.mark.parametrize("placement", ["pre", "post", "mix(alpha=0.5)", "lns", "none"])
def test_every_placement_is_kept(placement: str, rows: Path, data: PreparedData, tmp_path: Path) -> None:
    config = mixln.MixLNLlamaConfig(
        vocab_size=len(data.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, placement=placement,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    data.tokenizer.save_pretrained(tmp_path / "source")
    tuned = mixln.finetune(tmp_path / "source", rows, out=tmp_path / "out", epochs=0.2, **SMALL)
    assert tuned.model.config.placement == placement
    frame: Any = tuned.to_frame()
    assert frame["loss_before"][0] > 0


def test_another_request_in_the_folder_is_refused(
    llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    mixln.finetune(llama, rows, out=out, epochs=0.2, **SMALL)
    before = (out / "model" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="another"):
        mixln.finetune(llama, rows, out=out, epochs=0.2, seed=1, **SMALL)
    assert main(["finetune", str(llama), str(rows), "--out", str(out), "--epochs", "3"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert (out / "model" / "model.safetensors").read_bytes() == before


def spoilt_models(source: Path, folder: Path) -> dict[str, Path]:
    """Copies of a model: with the tokenizer of another one, with none, and with a weight that is not a number."""
    found = {name: Path(shutil.copytree(source, folder / name)) for name in ("other", "bare", "nan")}
    train_tokenizer((f"{number:05d} {number * 7919:x}" for number in range(20000)), 2000).save_pretrained(
        found["other"]
    )
    for path in found["bare"].glob("tokenizer*"):
        path.unlink()
    model = AutoModelForCausalLM.from_pretrained(source)
    model.lm_head.weight.data[3, 3] = float("nan")
    model.save_pretrained(found["nan"])
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{llama}", "none.jsonl"], "none.jsonl is not a file"),
        (["{folder}/nowhere", "{rows}"], "there is no folder"),
        (["{llama}", "{rows}", "--epochs", "0"], "epochs"),
        (["{llama}", "{rows}", "--validation-fraction", "0"], "nothing is held out"),
        (["{llama}", "{rows}", "--validation-fraction", "1.5"], "--validation-fraction"),
        (["{llama}", "{rows}", "--sequence-length", "4"], "do not fit into a row of 4 tokens"),
        (["{llama}", "{rows}", "--too-long", "ignore"], "--too-long"),
        (["{llama}", "{rows}", "--weights", "1", "2"], "--weights must have a positive number for each of the 1"),
        (["{llama}", "{rows}", "--template", "nothing.yaml"], "there is no prompt template 'nothing.yaml'"),
        (["{llama}", "{rows}", "--template", "instruction"], "'instruction' is undefined"),
        (["{llama}", "{rows}", "--method", "lora", "--rank", "0"], "rank"),
        (["{llama}", "{rows}", "--rank", "4"], "--rank 4 is of low-rank updates, and all weights are trained"),
        (["{llama}", "{rows}", "--weight-decay", "inf"], "--weight-decay must be a finite number"),
        (["{llama}", "{empty}"], "holds no examples"),
        (["{llama}"], "are required: DATA"),
        (["{llama}", "{no_answer}"], "no_answer.jsonl:2 has an empty answer"),
        (["{llama}", "{rows}", "--template", "{no_field}"], "'question' is undefined. The row has the fields"),
        (["{llama}", "{rows}", "--template", "{half}"], "must have a prompt and an answer"),
        (["{llama}", "{rows}", "{no_completion}"], "no_completion.jsonl:2 has no completion"),
        (["{llama}", "{cut_off}"], "cut_off.jsonl.gz"),
        (["{llama}", "{folder}/empty"], "holds no file of JSON lines"),
        (["{other}", "{rows}"], "tokenizer"),
        (["{bare}", "{rows}"], "tokenizer"),
        (["{nan}", "{rows}"], "not a number"),
    ],
)
def test_bad_requests_end_in_one_message(
    arguments: list[str],
    message: str,
    llama: Path,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = evenness(range(2))
    (tmp_path / "empty").mkdir()
    (tmp_path / "field.yaml").write_text("prompt: '{{ question }}'\nanswer: '{{ completion }}'\n")
    (tmp_path / "half.yaml").write_text("prompt: '{{ prompt }}'\n")
    (tmp_path / "cut_off.jsonl.gz").write_bytes(gzip.compress(rows.read_bytes())[:-20])
    places = {
        "llama": llama,
        "rows": rows,
        "folder": tmp_path,
        "empty": write(tmp_path / "empty.jsonl", []),
        "no_answer": write(tmp_path / "no_answer.jsonl", [good[0], good[1] | {"completion": " "}]),
        "no_completion": write(tmp_path / "no_completion.jsonl", [good[0], {"prompt": "a"}]),
        "no_field": tmp_path / "field.yaml",
        "half": tmp_path / "half.yaml",
        "cut_off": tmp_path / "cut_off.jsonl.gz",
        **(spoilt_models(llama, tmp_path) if {"{other}", "{bare}", "{nan}"} & set(arguments) else {}),
    }
    filled = [one.format(**places) for one in arguments]
    assert main(["finetune", *filled, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
