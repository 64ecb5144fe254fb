"""`mixln rlhf`: policies from the command to the table, under one judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean, stdev
from typing import Any

import pytest
from rewards import save_reward, write_functions
from tiny import save_tiny_llama, with_begin_token
from transformers import AutoModelForCausalLM

import mixln
from mixln.cli import main
from mixln.data import PreparedData, train_tokenizer
from mixln.errors import InputError
from mixln.report.policies import POLICIES_FILE, PolicyReport
from mixln.report.serialize import from_json
from mixln.studies.policies import COMPLETIONS_FILE
from mixln.tasks.trl_runs import CHECKPOINTS_FOLDER

pytest.importorskip("trl", reason="needs mixln[sft]")

QUICK: dict[str, Any] = {
    "steps": 1,
    "prompts_per_step": 2,
    "completions_per_prompt": 2,
    "max_new_tokens": 5,
    "samples": 2,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def start(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "start", data.tokenizer, 2, initializer_range=0.02)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": f"What is {name.lower()}?"} for name in sorted(topics)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"python:{write_functions(tmp_path_factory.mktemp('functions'))}"


def completions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / COMPLETIONS_FILE).read_text(encoding="utf-8").splitlines()]


def test_a_reward_that_can_be_learned_rises(
    start: Path, prompts: Path, functions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The positive control: the share of vowels. All numbers follow from what was written to held-out prompts."""
    out = tmp_path / "out"
    words = [
        *["rlhf", str(start), str(prompts), "--reward", f"{functions}:vowels", "--out", str(out)],
        *["--steps", "20", "--prompts-per-step", "8", "--max-new-tokens", "8", "--lr", "3e-2", "--beta", "0"],
        *["--validation-fraction", "0.2"],
    ]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the reward rose by" in shown
    assert "4 sampled at temperature 1, top-p 1, up to 8 new tokens, seed 0" in shown
    report = from_json((out / POLICIES_FILE).read_text(), PolicyReport)
    (score,) = report.policies
    assert report.command.endswith(" ".join(words[-8:]))
    assert score.gain is not None
    assert score.gain.interval is not None
    assert score.gain.interval[0] > 1
    assert score.win_rate.interval is not None
    assert score.win_rate.interval[0] > 0.6
    assert score.kl_per_token.value > 0.1

    written = completions(out)
    assert len(written) == report.held_out >= 8
    before, after = ([one[name] for one in written] for name in ("reward_before", "reward_after"))
    flat = [reward for several in before for reward in several]
    assert score.before.value == pytest.approx(fmean(flat))
    assert score.after.value == pytest.approx(fmean(reward for several in after for reward in several))
    assert score.deviation == pytest.approx(stdev(flat))
    assert score.gain.value == pytest.approx((score.after.value - score.before.value) / stdev(flat))
    pairs = [(new, old) for news, olds in zip(after, before, strict=True) for new in news for old in olds]
    assert score.win_rate.value == pytest.approx(fmean((new > old) + (new == old) / 2 for new, old in pairs))
    vowels = [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for one in written for text in one["after"]]
    assert [reward for several in after for reward in several] == pytest.approx(vowels)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == list(range(1, 21))
    assert AutoModelForCausalLM.from_pretrained(out / "model").config.model_type == "llama"


def test_a_policy_that_was_not_trained_is_its_start(start: Path, prompts: Path, functions: str, tmp_path: Path) -> None:
    """A rate so small that no weight changes: every number is exactly that of no change."""
    changes = {**QUICK, "learning_rate": 1e-30}
    trained = mixln.rlhf(start, prompts, reward=f"{functions}:vowels", out=tmp_path / "out", **changes)
    (score,) = trained.report.policies
    for estimate in (score.kl_per_token, score.kl_per_sequence, score.rise):
        assert (estimate.value, estimate.interval) == (0, (0, 0))
    assert score.win_rate.value == 0.5
    assert score.after == score.before
    assert score.verdict == "the reward is what it was, at every prompt"
    frame: Any = trained.to_frame()
    assert frame["gain"][0] == 0
    saved = trained.save(tmp_path / "saved")
    assert (saved / "model" / "config.json").is_file()
    assert from_json((saved / POLICIES_FILE).read_text(), PolicyReport) == trained.report


def test_several_policies_are_compared_under_one_judge(
    start: Path, prompts: Path, functions: str, data: PreparedData, tmp_path: Path
) -> None:
    """Each is trained against a reward of its own, one of which reads with another tokenizer."""
    other = tmp_path / "mix"
    config = mixln.MixLNLlamaConfig(
        vocab_size=len(data.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, placement="mix(alpha=0.5)",
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    data.tokenizer.save_pretrained(other)
    tokenizer = with_begin_token(train_tokenizer(["What is a class?"], 270))
    reward = save_reward(tmp_path / "reward", tokenizer, (0.7, 0.6, 0.8))
    models, rewards = [start, other], [f"{functions}:vowels", str(reward)]
    with pytest.raises(InputError, match="share no scale"):
        mixln.rlhf(models, prompts, reward=rewards, out=tmp_path / "none", **QUICK)
    out = tmp_path / "out"
    trained = mixln.rlhf(models, prompts, reward=rewards, judge=str(reward), out=out, **QUICK)
    report = trained.report
    assert [one.policy for one in report.policies] == ["start", "mix"]
    assert report.judge.accuracy is not None
    assert report.judge.accuracy.interval == (0.6, 0.8)
    written = [completions(out / name) for name in ("start", "mix")]
    assert [one["prompt"] for one in written[0]] == [one["prompt"] for one in written[1]]
    rises = [[fmean(one["reward_after"]) - fmean(one["reward_before"]) for one in several] for several in written]
    (test,) = report.tests
    assert (test.policy, test.baseline) == ("mix", "start")
    assert test.rise.value == pytest.approx(fmean(rises[1]) - fmean(rises[0]))
    ends = [fmean(fmean(one["reward_after"]) for one in several) for several in written]
    assert test.reward.value == pytest.approx(ends[1] - ends[0])
    text = " ".join(str(trained).split())
    assert "trained against rewards of their own" in text
    assert "another seed can differ by more" in text
    assert "The judge is the reward that was trained against" in text
    assert "right in 70.0% [60.0%, 80.0%] of 200 held-out pairs" in text

    weights = [(out / name / "model" / "model.safetensors") for name in ("start", "mix")]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in weights]
    again = mixln.rlhf(models, prompts, reward=rewards, judge=f"{functions}:vowels", out=out, **QUICK)
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in weights] == before, "judged anew, not trained"
    assert again.report.judge.name == f"{functions}:vowels"
    assert [one["after"] for one in completions(out / "mix")] == [one["after"] for one in written[1]]
    assert [one["reward_after"] for one in completions(out / "mix")] != [one["reward_after"] for one in written[1]]
    with pytest.raises(InputError, match=r"holds another run \(config\.seed was 0, is 1\)"):
        mixln.rlhf(models, prompts, reward=rewards, judge=str(reward), out=out, seed=1, **QUICK)


def test_a_reward_no_better_than_a_coin_needs_force(
    start: Path, prompts: Path, data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = save_reward(tmp_path / "reward", data.tokenizer, (0.55, 0.48, 0.62))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    words = ["rlhf", str(start), str(prompts), "--reward", str(reward), "--out", str(tmp_path / "out"), *options]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "55.0% [48.0%, 62.0%] of 200 held-out pairs, which cannot be told from a coin" in message
    assert "--force" in message
    assert not (tmp_path / "out" / "model").exists()
    assert main([*words, "--force"]) == 0
    assert "was used by force" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_killed_command_goes_on_by_the_same_command(
    start: Path, prompts: Path, functions: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mixln", "rlhf", str(start), str(prompts), "--reward", f"{functions}:vowels"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in (QUICK | {"steps": 8}).items()]
    command += ["--checkpoint-every", "1", "--out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen([*command, str(cut)], env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(cut.glob(f"{CHECKPOINTS_FOLDER}/*/manifest.json")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (cut / "model").exists(), "it was finished before it was killed"
    for out in (cut, whole):
        subprocess.run([*command, str(out)], env=environment, check=True, capture_output=True)
    assert (cut / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert completions(cut) == completions(whole)
    first, second = (json.loads((out / POLICIES_FILE).read_text())["policies"][0] for out in (cut, whole))
    assert {**first, "folder": ""} == {**second, "folder": ""}


@pytest.mark.slow
def test_a_reward_of_mixln_reward_is_taken_with_its_accuracy(start: Path, prompts: Path, tmp_path: Path) -> None:
    """Trained on pairs of which the preferred answer has an `e`; its run folder is the reward."""
    names = [name.lower() for name in sorted(topics)]
    pairs = [{"prompt": f"What is {one}?\n", "chosen": "eee the", "rejected": "xxx hah"} for one in names]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    trained = mixln.reward(
        start, path, out=tmp_path / "reward", learning_rate=1e-2, epochs=2, precision="float32", validation_fraction=0.3
    )
    assert trained.report.interval[0] > 0.5
    policies = mixln.rlhf(start, prompts, reward=tmp_path / "reward", out=tmp_path / "out", **QUICK)
    accuracy = policies.report.judge.accuracy
    assert accuracy is not None
    assert (accuracy.value, accuracy.interval) == (trained.report.accuracy, trained.report.interval)
    one = completions(tmp_path / "out")[0]
    texts = [text or " " for text in one["after"]]
    expected = trained.judge.rewards([one["prompt"]] * 2, texts)
    written = [reward for reward, text in zip(one["reward_after"], one["after"], strict=True) if text.strip()]
    assert written == pytest.approx(
        [reward for reward, text in zip(expected, one["after"], strict=True) if text.strip()], abs=1e-5
    )


def test_greedy_completions_are_one_of_each(start: Path, prompts: Path, functions: str, tmp_path: Path) -> None:
    trained = mixln.rlhf(start, prompts, reward=f"{functions}:vowels", out=tmp_path, greedy=True, **QUICK)
    assert {len(one["after"]) for one in completions(tmp_path)} == {1}
    assert trained.report.sampling == "greedy (the likeliest token each time), up to 5 new tokens, seed 0"
    assert "along greedy completions" in trained.report.divergence


def test_conversations_are_prompts_too(start: Path, functions: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"What is {number}?"}]} for number in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {**QUICK, "validation_fraction": 0.3}
    mixln.rlhf(start, path, reward=f"{functions}:prompts_too", out=tmp_path / "out", **changes)
    for one in completions(tmp_path / "out"):
        (message,) = one["prompt"]
        assert one["reward_before"] == [float(len(f"user: {message['content']}"))] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{start}", "{folder}/none.jsonl", "--reward", "{vowels}"], "none.jsonl is not a file"),
        (["{start}", "{folder}/empty.jsonl", "--reward", "{vowels}"], "there are no prompts"),
        (["{start}", "{prompts}"], "are required: --reward"),
        (["{start}", "{prompts}", "--reward", "{functions}:share"], "share does not exist in"),
        (["{start}", "{prompts}", "--reward", "{functions}:one_short"], "rewards for"),
        (["{start}", "{prompts}", "--reward", "{functions}:not_a_number"], "gave nan, which is no finite number"),
        (["{start}", "{prompts}", "--reward", "{functions}:raises"], "raises ZeroDivisionError"),
        (["{start}", "{prompts}", "--reward", "{start}"], "is a language model, which gives no rewards"),
        (["{start}", "{start}", "{prompts}", "--reward", "{vowels}"], "a model is named twice"),
        (
            ["{start}", "{prompts}", "--reward", "{vowels}", "{vowels}"],
            "give one reward for all models, or one for each",
        ),
        (
            ["{start}", "{prompts}", "--reward", "{vowels}", "--validation-fraction", "0"],
            "--validation-fraction must be above 0",
        ),
        (
            ["{start}", "{prompts}", "--reward", "{vowels}", "--max-new-tokens", "2040"],
            "leave no room for a completion",
        ),
        (["{start}", "{prompts}", "--reward", "{vowels}", "--max-new-tokens", "5000"], "takes 2048 tokens"),
        (["{start}", "{prompts}", "--reward", "{vowels}", "--temperature", "0"], "temperature"),
        (["{start}", "{prompts}", "--reward", "{vowels}", "--names", "a", "b"], "a different name for each"),
        (["{folder}/nowhere", "{prompts}", "--reward", "{vowels}"], "there is no folder"),
        (["{start}", "{prompts}", "--reward", "{functions}:leaves"], "raises SystemExit: 3"),
        (["{start}", "{prompts}", "--reward", ""], "--reward is empty"),
        (["{start}", "{prompts}", "--reward", "{vowels}", "--judge", ""], "--judge is empty"),
        (["{start}", "{prompts}", "--reward", "{vowels}", "--names", " "], "' ' in --names cannot be"),
        (["{start}", "{twin}", "{prompts}", "--reward", "{vowels}", "--names", "..", "b"], "'..' in --names cannot be"),
        (["{start}", "{twin}", "{prompts}", "--reward", "{vowels}", "--names", "rlhf.json", "b"], "cannot be the name"),
        (["{start}", "{prompts}", "--reward", "{vowels}", "--micro-batch-size", "7"], "--micro-batch-size (7) does"),
    ],
)
def test_bad_requests_end_in_one_message(
    words: list[str],
    message: str,
    start: Path,
    prompts: Path,
    functions: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "twin").symlink_to(start)
    places = {"start": start, "prompts": prompts, "functions": functions, "vowels": f"{functions}:vowels"}
    places["twin"] = tmp_path / "twin"
    filled = [word.format(folder=tmp_path, **places) for word in words]
    assert main(["rlhf", *filled, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "model").exists()


def test_a_reward_that_was_wrong_is_corrected_in_the_same_folder(start: Path, prompts: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "own.py", tmp_path / "out"
    file.write_text("def own(prompts, completions):\n    return [len(text) / 0 for text in completions]\n")
    with pytest.raises(InputError, match=r"raises ZeroDivisionError.*\(line 2\)"):
        mixln.rlhf(start, prompts, reward=f"python:{file}:own", out=out, **QUICK)
    file.write_text("def own(prompts, completions):\n    return [len(text) / 2 for text in completions]\n")
    mixln.rlhf(start, prompts, reward=f"python:{file}:own", out=out, **QUICK)
    kept = (out / "model" / "model.safetensors").read_bytes()
    file.write_text("def own(prompts, completions):\n    return [len(text) / 3 for text in completions]\n")
    with pytest.raises(InputError, match="holds another run"):
        mixln.rlhf(start, prompts, reward=f"python:{file}:own", out=out, **QUICK)
    assert (out / "model" / "model.safetensors").read_bytes() == kept
