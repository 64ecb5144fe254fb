"""Policies trained by TRL's RLOOTrainer: what it is given, what it computes from it, and runs that are interrupted."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tiny import save_tiny_llama, with_begin_token
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import mixln
from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.tasks.policy import prompt_order, train_policy
from mixln.tasks.policy_config import RLHFConfig
from mixln.tasks.trl_runs import CHECKPOINTS_FOLDER
from mixln.training import TrainingDivergedError, TrainingInterrupted
from mixln.training.callbacks.metrics import METRICS_FILE

pytest.importorskip("trl", reason="needs mixln[sft]")

SMALL: dict[str, Any] = {
    "prompts_per_step": 2,
    "completions_per_prompt": 3,
    "max_new_tokens": 6,
    "learning_rate": 1e-2,
    "steps": 3,
}
NAMES = [name.lower() for name in sorted(topics)[:12]]


def vowels(text: str) -> float:
    return sum(letter in "aeiou" for letter in text) / max(1, len(text))


def share_of_vowels(_: Sequence[int], texts: Sequence[str]) -> list[float]:
    return [vowels(text) for text in texts]


@pytest.fixture(scope="module")
def llama(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), data.tokenizer, 2, initializer_range=0.02)


@pytest.fixture(scope="module")
def prompts(data: PreparedData) -> list[list[int]]:
    return [data.tokenizer(f"What is {name}?")["input_ids"] for name in NAMES]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the trainer makes of each batch of completions, with the weights that wrote it."""
    from trl.trainer.rloo_trainer import RLOOTrainer

    original: Callable[..., dict[str, Any]] = RLOOTrainer._generate_and_score_completions
    kept: list[dict[str, Any]] = []

    def generate(self: Any, inputs: Any) -> dict[str, Any]:
        output = original(self, inputs)
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        with torch.no_grad():
            logits = self.model(input_ids=ids, attention_mask=mask).logits
        kept.append({**output, "ids": ids, "mask": mask, "log_probability": of_completions(logits, output)})
        return output

    monkeypatch.setattr(RLOOTrainer, "_generate_and_score_completions", generate)
    return kept


def of_completions(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    """log p(y | x) of each completion, by nothing but the logits."""
    width = batch["completion_ids"].shape[1]
    table = logits[:, -width - 1 : -1].log_softmax(-1)
    single = table.gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)
    return (single * batch["completion_mask"]).sum(1)


def test_the_advantage_is_the_reward_less_the_mean_of_the_others(
    llama: Path, prompts: list[list[int]], batches: list[dict[str, Any]], tmp_path: Path
) -> None:
    """With the divergence from the start taken off, which is 0 in the first step and not in the later ones."""
    beta, given = 0.5, []

    def score(numbers: Sequence[int], texts: Sequence[str]) -> list[float]:
        given.append(share_of_vowels(numbers, texts))
        return given[-1]

    train_policy(llama, prompts, score, RLHFConfig(beta=beta, **SMALL), tmp_path)
    start = AutoModelForCausalLM.from_pretrained(llama)
    divergences: list[float] = []
    for rewards, batch in zip(given, batches, strict=True):
        with torch.no_grad():
            logits = start(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
        ratio = batch["log_probability"] - of_completions(logits, batch)
        divergences.append(ratio.abs().max().item())
        whole = [reward - beta * one for reward, one in zip(rewards, ratio.tolist(), strict=True)]
        expected = [
            own - fmean(other for place, other in enumerate(group) if place != number)
            for group in (whole[:3], whole[3:])
            for number, own in enumerate(group)
        ]
        assert batch["advantages"].tolist() == pytest.approx(expected, abs=1e-5)
    assert len(batches) == 3
    assert divergences[0] == pytest.approx(0, abs=1e-5)
    assert divergences[2] > 1e-3


def test_the_gradient_is_that_of_the_advantages_times_the_log_probabilities(
    llama: Path, prompts: list[list[int]], batches: list[dict[str, Any]], tmp_path: Path
) -> None:
    train_policy(llama, prompts, share_of_vowels, RLHFConfig(**{**SMALL, "steps": 1}), tmp_path)
    (batch,) = batches
    model = AutoModelForCausalLM.from_pretrained(llama)
    logits = model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
    (-(batch["advantages"] * of_completions(logits, batch)).mean()).backward()
    norm = torch.nn.utils.get_total_norm([one.grad for one in model.parameters() if one.grad is not None])
    logged = json.loads((tmp_path / METRICS_FILE).read_text())
    assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    before, after = weights(llama), weights(tmp_path / "model")
    assert any(not torch.equal(before[name], after[name]) for name in before), "a run of one step makes an update"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_micro_batches_change_no_more_than_rounding(llama: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    one = {**SMALL, "steps": 1}
    train_policy(llama, prompts, share_of_vowels, RLHFConfig(**one), tmp_path / "whole")
    train_policy(llama, prompts, share_of_vowels, RLHFConfig(**one, micro_batch_size=2), tmp_path / "parts")
    whole, parts = (json.loads((tmp_path / name / METRICS_FILE).read_text()) for name in ("whole", "parts"))
    assert parts["reward"] == whole["reward"]
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_the_policy_reads_the_tokens_that_it_is_given(
    data: PreparedData, batches: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Its tokenizer puts an end token behind every text, spells special tokens in text, and pads with the end."""
    tokenizer = with_begin_token(data.tokenizer)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"<s> $A {end}",
        special_tokens=[("<s>", tokenizer.bos_token_id), (end, tokenizer.eos_token_id)],  # pyright: ignore[reportArgumentType]
    )
    save_tiny_llama(tmp_path / "start", tokenizer, 1)
    rows = [[tokenizer.bos_token_id, 7, 8], [tokenizer.bos_token_id, 9]]
    config = RLHFConfig(**{**SMALL, "steps": 1, "seed": 4})
    train_policy(tmp_path / "start", rows, share_of_vowels, config, tmp_path / "out")
    (batch,) = batches
    read = [ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    order = prompt_order(2, config)
    assert read == [rows[order[0]]] * 3 + [rows[order[1]]] * 3
    saved = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert saved("a").input_ids == tokenizer("a").input_ids, "the tokenizer of the policy is that of its start"


def test_the_order_is_a_permutation_in_every_epoch() -> None:
    order = prompt_order(5, RLHFConfig(epochs=2, prompts_per_step=4))
    assert len(order) == 12
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert order[:5] != order[5:10]
    assert order != prompt_order(5, RLHFConfig(epochs=2, prompts_per_step=4, seed=1))


def test_rewards_are_clipped_and_what_does_not_end_is_penalised(
    llama: Path, prompts: list[list[int]], batches: list[dict[str, Any]], tmp_path: Path
) -> None:
    def score(numbers: Sequence[int], _: Sequence[str]) -> list[float]:
        return [10.0 * place - 20 for place in range(len(numbers))]

    config = RLHFConfig(**{**SMALL, "steps": 1, "max_new_tokens": 40}, beta=0, reward_clip=5, missing_end_penalty=2)
    train_policy(llama, prompts, score, config, tmp_path)
    (batch,) = batches
    end = AutoTokenizer.from_pretrained(llama).eos_token_id
    lengths = batch["completion_mask"].sum(1).tolist()
    ended = [ids[length - 1].item() == end for ids, length in zip(batch["completion_ids"], lengths, strict=True)]
    clipped = [-5.0, -5.0, 0.0, 5.0, 5.0, 5.0]
    rewards = [one - (0 if has_ended else 2) for one, has_ended in zip(clipped, ended, strict=True)]
    expected = [own - (sum(group) - own) / 2 for group in (rewards[:3], rewards[3:]) for own in group]
    assert batch["advantages"].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_interrupted_run_ends_with_the_same_bits(
    method: str, llama: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="needs mixln[healing]")
    config = RLHFConfig(**{**SMALL, "steps": 6}, checkpoint_every=2, method=method)  # pyright: ignore[reportArgumentType]
    train_policy(llama, prompts, share_of_vowels, config, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(step: int, _: float) -> None:
        if step == 5:
            raise StoppedError

    with pytest.raises(InputError, match="StoppedError"):
        train_policy(llama, prompts, share_of_vowels, config, tmp_path / "cut", stop)
    checkpoints = tmp_path / "cut" / CHECKPOINTS_FOLDER
    newest = checkpoints / "checkpoint-4"
    assert newest.is_dir()
    torn = checkpoints / "checkpoint-5"  # as a kill leaves it
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    seen: list[int] = []
    train_policy(llama, prompts, share_of_vowels, config, tmp_path / "cut", lambda step, _: seen.append(step))
    assert seen == [5, 6]
    found, expected = weights(tmp_path / "cut" / "model"), weights(tmp_path / "whole" / "model")
    assert found.keys() == weights(llama).keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    logs = [(tmp_path / name / METRICS_FILE).read_text().splitlines() for name in ("cut", "whole")]
    rewards = [[json.loads(line)["reward"] for line in lines] for lines in logs]
    assert rewards[0] == rewards[1]
    assert len(rewards[0]) == 6
    assert not checkpoints.exists()


def test_ctrl_c_waits_for_a_checkpoint(llama: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    def interrupt(step: int, _: float) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    config = RLHFConfig(**{**SMALL, "steps": 5}, checkpoint_every=5)
    with pytest.raises(TrainingInterrupted, match=r"the checkpoint of step 3 is kept\. Run the same command again"):
        train_policy(llama, prompts, share_of_vowels, config, tmp_path, interrupt)
    seen: list[int] = []
    train_policy(llama, prompts, share_of_vowels, config, tmp_path, lambda step, _: seen.append(step))
    assert seen == [4, 5]


@pytest.mark.parametrize("placement", ["pre", "mix(alpha=0.5)", "lns", "none"])
def test_every_placement_is_kept(placement: str, data: PreparedData, prompts: list[list[int]], tmp_path: Path) -> None:
    config = mixln.MixLNLlamaConfig(
        vocab_size=len(data.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, placement=placement,
    )  # fmt: skip
    start = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    start.save_pretrained(tmp_path / "start")
    data.tokenizer.save_pretrained(tmp_path / "start")
    train_policy(tmp_path / "start", prompts, share_of_vowels, RLHFConfig(**SMALL), tmp_path / "out")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert str(trained.config.placement) == placement
    assert trained.dtype == torch.bfloat16
    before, after = weights(tmp_path / "start"), weights(tmp_path / "out" / "model")
    assert {name: one.dtype for name, one in after.items()} == {name: one.dtype for name, one in before.items()}
    assert any(not torch.equal(before[name], after[name]) for name in before)
    old, new = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("start", "out/model"))
    assert new == old


def test_generation_settings_of_the_folder_are_kept_and_not_used(
    data: PreparedData, prompts: list[list[int]], batches: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Token 2 ends texts by the default of Llama's config; here it is a letter like others."""
    start = tmp_path / "start"
    save_tiny_llama(start, data.tokenizer, 1, initializer_range=0.02)
    settings = GenerationConfig(eos_token_id=[2], do_sample=True, top_k=1, repetition_penalty=3.0, max_new_tokens=1)
    settings.save_pretrained(start)
    config = RLHFConfig(**{**SMALL, "steps": 1, "max_new_tokens": 30, "prompts_per_step": 8})
    train_policy(start, prompts, share_of_vowels, config, tmp_path / "out")
    (batch,) = batches
    rows = [
        ids[mask.bool()].tolist() for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    assert {row[0] for row in rows} - {rows[0][0]}, "top-k 1 would give one token"
    assert any(2 in row[:-1] for row in rows), "and a text goes on behind token 2"
    saved = GenerationConfig.from_pretrained(tmp_path / "out" / "model")
    assert (saved.eos_token_id, saved.top_k, saved.repetition_penalty) == ([2], 1, 3.0)


def test_dropout_is_off(
    data: PreparedData, prompts: list[list[int]], batches: list[dict[str, Any]], tmp_path: Path
) -> None:
    save_tiny_llama(tmp_path / "start", data.tokenizer, 2, attention_dropout=0.5)
    train_policy(tmp_path / "start", prompts, share_of_vowels, RLHFConfig(**{**SMALL, "steps": 1}), tmp_path / "out")
    logged = json.loads((tmp_path / "out" / METRICS_FILE).read_text())
    assert logged["kl"] == pytest.approx(0, abs=1e-6), "the policy is its start"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    with torch.no_grad():
        logits = again(input_ids=batches[0]["ids"], attention_mask=batches[0]["mask"]).logits
    assert batches[0]["old_logps"].tolist() == pytest.approx(of_completions(logits, batches[0]).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (lambda count: [math.nan] * count, "gave nan, which is no finite number, to"),
        (lambda count: [0.5] * (count - 1) + [math.inf], "gave inf"),
        (lambda count: [None] * count, "gave None to"),
        (lambda count: [0.5] * (count + 1), "returned 7 rewards for 6 completions"),
        (lambda _: 0.5, "returned a float"),
        (lambda count: ["good"] * count, "gave 'good' to"),
    ],
)
def test_what_is_no_reward_is_refused(
    rewards: Callable[[int], Any], message: str, llama: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train_policy(llama, prompts, lambda numbers, _: rewards(len(numbers)), RLHFConfig(**SMALL), tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_policy_that_is_lost_is_said_to_be(llama: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    config = RLHFConfig(**{**SMALL, "learning_rate": 1e30, "steps": 12})
    with pytest.raises(TrainingDivergedError, match=r"[Ll]ower the learning rate"):
        train_policy(llama, prompts, share_of_vowels, config, tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch_size": 5}, "`micro_batch_size` (5) does not divide the 64 completions"),
        ({"completions_per_prompt": 1}, "completions_per_prompt must be at least 2"),
        ({"temperature": 0.0}, "temperature must be in"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"seed": 2**32}, "`seed` must be below"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        RLHFConfig(**changes)


def test_what_trl_does_by_default_is_what_the_page_says(
    llama: Path, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/how-to/rlhf.md, `What TRL does without a word`; if this fails, the page is to be corrected."""
    import trl.trainer.base_trainer as base
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer
    from trl.trainer.utils import RepeatSampler, disable_dropout_in_model

    monkeypatch.setattr(base, "send_telemetry", lambda *_, **__: None, raising=False)
    defaults = RLOOConfig(output_dir=str(tmp_path), use_cpu=True)
    assert defaults.beta == 0.05
    assert (defaults.temperature, defaults.top_p, defaults.num_generations) == (1.0, 1.0, 2)
    off = [defaults.disable_dropout, defaults.mask_truncated_completions, defaults.normalize_advantages]
    assert off == [False] * 3
    assert defaults.reward_clip_range is None
    assert defaults.bf16
    assert defaults.gradient_checkpointing
    assert defaults.logging_nan_inf_filter
    assert len(list(RepeatSampler(range(7), mini_repeat_count=1, batch_size=3))) == 6, "what is left over is left out"
    model: Any = AutoModelForCausalLM.from_pretrained(llama, attention_dropout=0.5)
    disable_dropout_in_model(model)
    assert model.model.layers[0].self_attn.attention_dropout == 0.5

    arguments = RLOOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, max_completion_length=3, use_cpu=True,
        bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1, beta=0.0,
    )  # fmt: skip
    trainer = RLOOTrainer(
        str(llama),
        reward_funcs=lambda completions, **_: [math.nan for _ in completions],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["a", "b", "c", "d"]}),
        processing_class=data.tokenizer,
    )
    batch = trainer._generate_and_score_completions([{"prompt": "a"}, {"prompt": "a"}])
    assert batch["advantages"].tolist() == [0.0, 0.0], "a reward that is NaN is no error"
