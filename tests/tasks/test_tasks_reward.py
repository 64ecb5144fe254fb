"""Reward models: `mixln reward` and `mixln.reward`."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_llama
from torch.utils.data import RandomSampler
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import mixln
from mixln.cli import main
from mixln.data import PreparedData
from mixln.data.preferences import PreferenceRequest, prepare_preferences
from mixln.errors import InputError
from mixln.models.classifier import give_padding_token, load_classifier
from mixln.models.load import load_tokenizer
from mixln.studies.reward_model import RUN_FILE, plan_reward_model, run_reward_model
from mixln.tasks.reward_config import RewardConfig
from mixln.tasks.reward_model import REPORT_FILE, load_reward_model
from mixln.tasks.trl_runs import CHECKPOINTS_FOLDER, claim_run
from mixln.training import TrainingDivergedError, TrainingInterrupted

pytest.importorskip("trl", reason="needs mixln[reward]")
pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")

SMALL: dict[str, Any] = {"learning_rate": 1e-2, "precision": "float32", "batch_size": 8}
WORDS = ["open", "close", "the", "old", "red", "door", "window", "and", "wait", "here", "for", "me", "again"]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def with_word(draw: random.Random, word: str | None) -> str:
    said = draw.choices(WORDS, k=draw.randint(3, 7))
    if word is not None:
        said[draw.randrange(len(said))] = word
    return " ".join(said)


def polite(pairs: int, *, prompts: int, shuffled: bool = False, seed: int = 0) -> list[dict[str, str]]:
    """Answers of which those with `please` are preferred; shuffled: as often the others."""
    draw = random.Random(seed)
    rows: list[dict[str, str]] = []
    for number in range(pairs):
        answers = [with_word(draw, "please"), with_word(draw, None)]
        if shuffled and draw.random() < 0.5:
            answers.reverse()
        rows.append({"prompt": f"order {number % prompts}\n", "chosen": answers[0], "rejected": answers[1]})
    return rows


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pairs") / "polite.jsonl", polite(160, prompts=80))


@pytest.fixture(scope="module")
def llama(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), data.tokenizer, 2)


def placed(folder: Path, placement: str, data: PreparedData, **fields: Any) -> Path:
    config = mixln.MixLNLlamaConfig(
        **{
            "vocab_size": len(data.tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "placement": placement,
            **fields,
        }
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    model.initialize(0).save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    # copies, since a test overwrites the file
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


def reward_of(model: Any, tokenizer: Any, *parts: str) -> float:
    """By the class of transformers, one text at a time; parts of it are in tokens apart."""
    ids = torch.tensor([[*(id for part in parts for id in tokenizer(part)["input_ids"]), tokenizer.eos_token_id]])
    with torch.no_grad():
        return model(input_ids=ids).logits.item()


@pytest.mark.parametrize("center", [0.0, 0.3])
def test_the_loss_and_its_gradient_are_bradley_and_terrys(
    center: float, llama: Path, pairs: Path, tmp_path: Path
) -> None:
    """-log sigmoid(r_chosen - r_rejected), by hand on the first batch, one text at a time and without padding.

    With a center c, c (r_chosen + r_rejected)^2 is added.
    """
    config = RewardConfig(learning_rate=1e-2, precision="float32", batch_size=6, epochs=0.04, center=center)
    plan = plan_reward_model(str(llama), PreferenceRequest([str(pairs)]), config)
    run_reward_model(plan, tmp_path / "out")
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])

    tokenizer = load_tokenizer(str(llama))
    data = prepare_preferences(PreferenceRequest([str(pairs)]), tokenizer)
    model, _ = load_classifier(str(llama), seed=config.seed)
    give_padding_token(model, tokenizer)
    losses = []
    for pair in data.train:
        rewards = [model(input_ids=torch.tensor([ids.tolist()])).logits[0, 0] for ids in (pair.chosen, pair.rejected)]
        losses.append(torch.log(1 + torch.exp(rewards[1] - rewards[0])) + center * (rewards[0] + rewards[1]) ** 2)
    # the order is that of the trainer's sampler
    order = RandomSampler(data.train, generator=torch.Generator().manual_seed(config.seed))
    batch = list(order)[:6]
    expected = torch.stack([losses[place] for place in batch]).mean()
    assert first["loss"] == pytest.approx(expected.item(), abs=1e-4)
    expected.backward()
    norm = math.sqrt(sum(float(one.grad.pow(2).sum()) for one in model.parameters() if one.grad is not None))
    assert first["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_what_can_be_learned_is_and_shuffled_labels_cannot_be_told_from_a_coin(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    for name, shuffled in (("learnable", False), ("shuffled", True)):
        source = write(tmp_path / f"{name}.jsonl", polite(400, prompts=200, shuffled=shuffled))
        out = tmp_path / name
        options = ["--lr", "5e-3", "--epochs", "2", "--precision", "float32", "--validation-fraction", "0.3"]
        assert main(["reward", str(llama), str(source), "--out", str(out), *options]) == 0
        shown = capsys.readouterr().out
        report = json.loads((out / REPORT_FILE).read_text())
        assert report["verdict"] in shown
        assert {"accuracy", "interval", "pairs", "prompts"} <= report.keys()
        reports.append(report)
    learned, shuffled = reports
    assert learned["accuracy"] > 0.97
    assert learned["interval"][0] > 0.9
    assert not learned["holds_half"]
    assert learned["loss"] < 0.2
    assert learned["verdict"].startswith("it is above 50 %; above always choosing the")
    assert shuffled["interval"][0] < 0.5 < shuffled["interval"][1]
    assert shuffled["holds_half"]
    assert shuffled["verdict"].startswith("it cannot be told from 50 %")
    for report in reports:
        assert report["pairs"] + report["train_pairs"] == report["counts"]["read"] == 400
        assert report["prompts"] + report["train_prompts"] == 200
        assert report["before"]["interval"][0] < 0.5 < report["before"]["interval"][1]


def test_a_preference_for_length_is_called_one(llama: Path, tmp_path: Path) -> None:
    draw = random.Random(3)
    rows = []
    for number in range(300):
        short, long = (" ".join(draw.choices(WORDS, k=size)) for size in (draw.randint(1, 4), draw.randint(5, 9)))
        rows.append({"prompt": f"order {number}\n", "chosen": long, "rejected": short})
    trained = mixln.reward(llama, write(tmp_path / "rows.jsonl", rows), out=tmp_path / "out", epochs=2, **SMALL)
    report = trained.report
    assert report.accuracy > 0.95
    assert report.length.longer.accuracy == 1
    assert report.length.shorter_chosen is None
    assert report.length.correlation is not None
    assert report.length.correlation > 0.5
    assert "not distinguishable from always choosing the longer answer" in report.verdict


def test_the_folder_is_what_the_report_says(llama: Path, pairs: Path, tmp_path: Path) -> None:
    """Opened by transformers alone, it has the held-out accuracy, and `judge` gives the same rewards."""
    held_out = polite(40, prompts=40, seed=9)
    source = write(tmp_path / "held_out.jsonl", [{**row, "prompt": f"other {row['prompt']}"} for row in held_out])
    trained = mixln.reward(llama, pairs, validation_data=[str(source)], out=tmp_path / "out", epochs=2, **SMALL)
    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model", num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    prompts = [row["prompt"] for row in rows]
    found = {
        side: [reward_of(model, tokenizer, row["prompt"] + row[side]) for row in rows]
        for side in ("chosen", "rejected")
    }
    right = sum(good > bad for good, bad in zip(found["chosen"], found["rejected"], strict=True))
    assert trained.report.accuracy == right / 40
    assert trained.report.pairs == 40
    assert trained.judge.rewards(prompts, [row["chosen"] for row in rows]) == pytest.approx(found["chosen"], abs=1e-4)
    # the folder of the run and that of the model are opened alike, and by TRL's way
    assert load_reward_model(tmp_path / "out").rewards(prompts[:3], [row["rejected"] for row in rows[:3]]) == (
        pytest.approx(found["rejected"][:3], abs=1e-4)
    )
    assert (tmp_path / "out" / REPORT_FILE).read_bytes() == (tmp_path / "out" / "model" / REPORT_FILE).read_bytes()
    frame: Any = trained.to_frame()
    assert frame["accuracy"][0] == trained.report.accuracy
    copied = trained.save(tmp_path / "copy")
    assert load_reward_model(copied).rewards(["a\n"], ["b"]) == trained.judge.rewards(["a\n"], ["b"])


def test_dialogues_are_read_as_the_policy_will_write_them(llama: Path, tmp_path: Path) -> None:
    """The tokenizer gets the plain chat template, which is saved, and the judge writes messages and texts with it."""
    rows = [
        {side: f"\n\nHuman: Hello.\n\nAssistant: Yes?\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}"
         for side in ("chosen", "rejected")}
        for row in polite(40, prompts=40)
    ]  # fmt: skip
    trained = mixln.reward(llama, write(tmp_path / "rows.jsonl", rows), out=tmp_path / "out", epochs=0.5, **SMALL)
    assert trained.report.form.name == "chat"
    model: Any = AutoModelForSequenceClassification.from_pretrained(trained.folder)
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    # a policy is given the tokens that the prompt has alone, and goes on from there
    expected = reward_of(model, tokenizer, "User: order 3\n\nAssistant: ", "wait here")
    prompt = [{"role": "user", "content": "order 3"}]
    assert trained.judge.rewards(["order 3", prompt], ["wait here"] * 2) == pytest.approx([expected] * 2, abs=1e-5)


def test_an_interrupted_run_ends_with_the_same_bits(llama: Path, pairs: Path, tmp_path: Path) -> None:
    config = RewardConfig(epochs=0.5, checkpoint_every=2, micro_batch_size=4, **SMALL)
    request = PreferenceRequest([str(pairs)])
    whole = run_reward_model(plan_reward_model(str(llama), request, config), tmp_path / "whole")

    def stop(step: int, *_: float) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match=r"the checkpoint of step [56] is kept"):
        run_reward_model(plan_reward_model(str(llama), request, config), tmp_path / "cut", stop)
    assert not (tmp_path / "cut" / "model").exists()
    # a checkpoint that a kill left half-written is newer, and passed over
    half = tmp_path / "cut" / CHECKPOINTS_FOLDER / "checkpoint-7"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    steps: list[int] = []
    again = run_reward_model(
        plan_reward_model(str(llama), request, config), tmp_path / "cut", lambda step, *_: steps.append(step)
    )
    assert steps[0] in (6, 7)
    assert again.report == whole.report
    found, expected = weights(again.folder), weights(whole.folder)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    lines = [path.joinpath("metrics.jsonl").read_text().splitlines() for path in (whole.run, again.run)]
    losses = [[(json.loads(line)["step"], json.loads(line)["loss"]) for line in some] for some in lines]
    assert losses[0] == losses[1]
    # finished: the same command reads it
    read = run_reward_model(plan_reward_model(str(llama), request, config), tmp_path / "cut", _never)
    assert read.report == whole.report


def test_an_interrupt_in_the_last_step_is_one(llama: Path, pairs: Path, tmp_path: Path) -> None:
    config = RewardConfig(epochs=0.25, **SMALL)
    plan = plan_reward_model(str(llama), PreferenceRequest([str(pairs)]), config)
    last = config.steps(len(plan.data.train))
    whole = run_reward_model(plan, tmp_path / "whole")

    def stop(step: int, *_: float) -> None:
        if step == last:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match=rf"the checkpoint of step {last} is kept"):
        run_reward_model(plan_reward_model(*_same(llama, pairs, config)), tmp_path / "cut", stop)
    assert not (tmp_path / "cut" / "model").exists()
    again = run_reward_model(plan_reward_model(*_same(llama, pairs, config)), tmp_path / "cut", _never)
    assert again.report == whole.report
    found, expected = weights(again.folder), weights(whole.folder)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    lines = [(run.run / "metrics.jsonl").read_text().splitlines() for run in (whole, again)]
    steps = [[json.loads(line)["step"] for line in some] for some in lines]
    assert steps[0] == steps[1] == [*range(1, last + 1)]


def _same(llama: Path, pairs: Path, config: RewardConfig) -> tuple[str, PreferenceRequest, RewardConfig]:
    return str(llama), PreferenceRequest([str(pairs)]), config


def _never(*_: Any) -> None:
    raise AssertionError("a finished run was trained again")


@pytest.mark.slow
def test_a_killed_command_goes_on_by_the_same_command(llama: Path, pairs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mixln", "reward", str(llama), str(pairs), "--precision", "float32"]
    command += ["--checkpoint-every", "1", "--epochs", "1", "--out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    cut = tmp_path / "cut"
    process = subprocess.Popen([*command, str(cut)], env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(cut.glob(f"{CHECKPOINTS_FOLDER}/*/manifest.json")):
        pass
    process.kill()
    process.wait()
    assert not (cut / "model").exists(), "it was finished before it was killed"
    for out in (cut, tmp_path / "whole"):
        subprocess.run([*command, str(out)], env=environment, check=True, capture_output=True)
    found, expected = weights(cut / "model"), weights(tmp_path / "whole" / "model")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "placement",
    ["pre", "none", *(pytest.param(one, marks=pytest.mark.slow) for one in ("post", "mix(alpha=0.5)", "lns"))],
)
def test_every_placement_is_kept(placement: str, pairs: Path, data: PreparedData, tmp_path: Path) -> None:
    source = placed(tmp_path / "source", placement, data, tie_word_embeddings=True)
    trained = mixln.reward(source, pairs, out=tmp_path / "out", epochs=0.1, **SMALL)
    assert trained.model.config.placement == placement
    assert trained.model.config.num_labels == 1
    assert trained.report.new_parameters == ("score.weight",)
    assert any("unbounded" in note for note in trained.report.notes) == (placement == "none")
    before, after = weights(source), weights(trained.folder)
    assert after.keys() == {name for name in before if "lm_head" not in name} | {"score.weight"}
    assert after["model.embed_tokens.weight"].shape[0] == before["model.embed_tokens.weight"].shape[0] + 1
    assert not torch.equal(after["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"])
    # a reward model is trained further with its own head
    further = mixln.reward(trained.folder, pairs, out=tmp_path / "further", epochs=0.1, **SMALL)
    assert further.report.new_parameters == ()
    assert further.report.before.accuracy == trained.report.accuracy


def test_a_seed_gives_the_same_model_and_another_seed_another(llama: Path, pairs: Path, tmp_path: Path) -> None:
    found = [
        weights(mixln.reward(llama, pairs, out=tmp_path / str(number), epochs=0.1, seed=seed, **SMALL).folder)
        for number, seed in enumerate((0, 0, 1))
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["score.weight"], found[2]["score.weight"])


def test_nothing_is_sent_and_nothing_is_printed(
    llama: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import trl.trainer.base_trainer as base

    monkeypatch.setattr(base, "send_telemetry", _never, raising=False)
    mixln.reward(llama, pairs, out=tmp_path / "out", epochs=0.05, **SMALL)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert not [line for line in shown.err.splitlines() if "loss" in line or "Warning" in line]


def test_what_trl_does_by_default_without_a_word(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the how-to page says of it, which is why it is not left to it."""
    import trl.trainer.base_trainer as base
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig as TrainerConfig
    from trl.trainer.reward_trainer import RewardTrainer

    monkeypatch.setattr(base, "send_telemetry", lambda *_, **__: None, raising=False)
    arguments = TrainerConfig(output_dir=str(tmp_path), max_length=30, use_cpu=True, report_to="none")
    assert arguments.bf16
    assert arguments.gradient_checkpointing
    assert arguments.logging_nan_inf_filter
    tokenizer: Any = load_tokenizer(str(llama))
    tokenizer.pad_token = None
    model: Any = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1)
    rows = [*polite(6, prompts=6), {"prompt": "word " * 60, "chosen": "a", "rejected": "b"}]
    rows.append({**rows[0], "rejected": rows[0]["chosen"]})
    caplog.clear()
    trainer = RewardTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    learned: Any = trainer.train_dataset
    assert len(learned) == 7, "the long pair is gone, the identical one is not"
    assert not caplog.messages
    assert tokenizer.pad_token_id == model.config.pad_token_id == tokenizer.eos_token_id
    assert learned[0]["chosen_ids"][-1] == tokenizer.eos_token_id, "which is never read"


def test_a_loss_that_is_no_number_ends_the_run(pairs: Path, data: PreparedData, tmp_path: Path) -> None:
    source = placed(tmp_path / "source", "none", data)
    with pytest.raises(TrainingDivergedError, match=r"the loss is (nan|inf) at step \d+"):
        mixln.reward(source, pairs, out=tmp_path / "out", epochs=20, learning_rate=1e12, precision="float32")
    assert not (tmp_path / "out" / "model").exists()


def test_a_judge_refuses_what_it_cannot_judge(llama: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a language model, which gives no rewards"):
        load_reward_model(llama)
    stock: Any = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1)
    stock.save_pretrained(tmp_path / "stock")
    load_tokenizer(str(llama)).save_pretrained(tmp_path / "stock")
    with pytest.raises(InputError, match="was not trained to see the end of a text"):
        load_reward_model(tmp_path / "stock")
    trained = mixln.reward(llama, pairs, out=tmp_path / "out", epochs=0.05, **SMALL)
    with pytest.raises(InputError, match="give one answer to each"):
        trained.judge.rewards(["a"], [])
    with pytest.raises(InputError, match="answer 2 has an empty answer"):
        trained.judge.rewards(["a", "b"], ["c", " "])
    changed = weights(trained.folder)
    changed["score.weight"][:] = math.nan
    save_file(changed, trained.folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 of 1 rewards are infinite or not a number"):
        load_reward_model(trained.folder).rewards(["a"], ["c"])


def test_another_request_in_the_folder_is_refused(
    llama: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    mixln.reward(llama, pairs, out=out, epochs=0.05, **SMALL)
    before = (out / "model" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"holds another run \(config.seed was 0, is 1\)"):
        mixln.reward(llama, pairs, out=out, epochs=0.05, seed=1, **SMALL)
    assert main(["reward", str(llama), str(pairs), "--out", str(out), "--epochs", "3"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert (out / "model" / "model.safetensors").read_bytes() == before
    (out / RUN_FILE).unlink()
    with pytest.raises(InputError, match="holds model, but no"):
        mixln.reward(llama, pairs, out=out, epochs=0.05, **SMALL)


def test_a_run_that_has_made_nothing_gives_way_to_another(llama: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    claim_run(out, RUN_FILE, {"config": {"seed": 7}})
    trained = mixln.reward(llama, pairs, out=out, epochs=0.05, **SMALL)
    assert trained.report.seed == 0
    again = mixln.reward(llama, pairs, out=out, epochs=0.05, checkpoint_every=1, **SMALL)
    assert again.report == trained.report, "how often checkpoints come changes nothing"
    with pytest.raises(InputError, match="holds another run"):
        claim_run(out, RUN_FILE, {"config": {"seed": 7}})


def test_one_held_out_prompt_says_nothing(llama: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "two.jsonl", [ONE, TWO])
    report = mixln.reward(llama, source, out=tmp_path / "out", **SMALL).report
    assert (report.prompts, report.interval, report.holds_half) == (1, (0.0, 1.0), True)
    assert report.length.difference_interval == (-1.0, 1.0)


def test_a_run_of_one_step_learns(llama: Path, pairs: Path, tmp_path: Path) -> None:
    """Warmup begins at rate 0, so one step of warmup would be the whole run."""
    trained = mixln.reward(llama, pairs, out=tmp_path / "out", epochs=0.05, **SMALL)
    assert trained.report.steps == 1
    given, learned = load_file(llama / "model.safetensors"), weights(trained.folder)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(given[name], learned[name])


def test_the_folder_of_a_model_is_no_place_for_a_run(
    llama: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(llama.iterdir())
    assert main(["reward", str(llama), str(pairs), "--out", str(llama)]) == 2
    assert f"--out {llama} is the folder of a model (config.json). Choose another folder" in capsys.readouterr().err
    assert sorted(llama.iterdir()) == before


def without_end_token(folder: Path, llama: Path) -> Path:
    model: Any = AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(str(llama))
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return folder


def bert(folder: Path, llama: Path) -> Path:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=600, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(config).save_pretrained(folder)
    load_tokenizer(str(llama)).save_pretrained(folder)
    return folder


def damaged(folder: Path, llama: Path) -> Path:
    model: Any = AutoModelForCausalLM.from_pretrained(llama)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = math.nan
    model.save_pretrained(folder)
    load_tokenizer(str(llama)).save_pretrained(folder)
    return folder


def small_vocabulary(folder: Path, llama: Path) -> Path:
    tokenizer = load_tokenizer(str(llama))
    save_tiny_llama(folder, tokenizer, 1, vocab_size=40)  # pyright: ignore[reportArgumentType]
    return folder


ONE = {"prompt": "a", "chosen": "b", "rejected": "c"}
TWO = {"prompt": "d", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("make", "rows", "options", "message"),
    [
        (None, None, [], "none.jsonl is not a file"),
        (None, [], [], "holds no pairs"),
        (None, [{"prompt": "a", "chosen": "b"}], [], ":1 has no rejected"),
        (None, [ONE, {**TWO, "chosen": ""}], [], "1 with an empty answer"),
        (None, [ONE, {**TWO, "chosen": "c"}], [], "1 with two equal answers"),
        (None, [{**TWO, "chosen": "c"}], ["--unusable", "drop"], "no pair is left to learn: of 1, 0 have an empty"),
        (None, [ONE, {**ONE, "chosen": "d"}], [], "all pairs have the same prompt"),
        (None, [ONE, TWO], ["--sequence-length", "2"], "2 are longer than 2 tokens"),
        (None, [ONE, TWO], ["--sequence-length", "2", "--too-long", "refuse"], "2 of 2 pairs are longer than 2 tokens"),
        (None, [ONE, TWO], ["--sequence-length", "999999"], "takes no rows of 999999 tokens"),
        (None, [ONE, TWO], ["--template", "nothing.yaml"], "there is no prompt template 'nothing.yaml'"),
        (None, [ONE, TWO], ["--micro-batch-size", "3"], "does not divide"),
        (None, [ONE, TWO], ["--epochs", "0"], "--epochs"),
        (None, [ONE, TWO], ["--epochs", "inf"], "--epochs must be a finite number, not inf"),
        (None, [ONE, TWO], ["--seed", "5000000000"], "--seed must be below 2^32"),
        (None, [ONE, TWO], ["--validation-fraction", "1.5"], "--validation-fraction"),
        (bert, [ONE, TWO], [], "is a BertForMaskedLM: give a causal language model"),
        (without_end_token, [ONE, TWO], [], "has no end-of-text token"),
        (damaged, [ONE, TWO], [], "not a number (NaN)"),
        (small_vocabulary, [ONE, TWO], [], "has embeddings for 40 tokens"),
    ],
)
def test_bad_requests_end_in_one_message(
    make: Callable[[Path, Path], Path] | None,
    rows: list[Any] | None,
    options: list[str],
    message: str,
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "none.jsonl" if rows is None else write(tmp_path / "rows.jsonl", rows)
    model = llama if make is None else make(tmp_path / "model", llama)
    capsys.readouterr()
    assert main(["reward", str(model), str(source), "--out", str(tmp_path / "out"), *options]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len([line for line in errors.splitlines() if line.startswith("mixln: ")]) == 1
    assert "Traceback" not in errors
