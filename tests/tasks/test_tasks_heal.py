"""Any architecture is trained on by the engine, and a run that was cut off ends as if it had not been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from measure_architectures import ARCHITECTURES, build_placed
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mixln.data import PreparedData, train_tokenizer
from mixln.errors import InputError
from mixln.tasks import FineTuning, HealingConfig, LowRankConfig, Recipe, validation_loss
from mixln.tasks.choice import choose_objective
from mixln.tasks.export import export_checkpoint
from mixln.tasks.objective import CausalLanguageModelObjective
from mixln.tasks.objectives import DocumentRowsObjective, LogitsObjective
from mixln.training import ExecutionConfig, FaultConfig, TrainingInterrupted, read_metrics, train
from mixln.training import run as run_module
from mixln.training.run import build_objective

DECODERS = ["llama", "qwen3", "mistral", "gemma2", "olmo2", "phi3", "gpt2", "gpt_neox", "opt", "mixtral"]
LOW_RANK = LowRankConfig(rank=2)


@pytest.fixture
def short(recipe: Recipe) -> Recipe:
    optimizer = replace(recipe.optimizer, name="adamw", learning_rate=3e-3)
    return replace(recipe, steps=6, optimizer=optimizer, execution=ExecutionConfig(checkpoint_every=2))


def build(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A small model in the tokens of a tokenizer."""
    if name.startswith("mixln "):
        model = build_placed(name.removeprefix("mixln "), len(tokenizer))
    else:
        architecture = ARCHITECTURES[name]
        model = replace(architecture, fields={**architecture.fields, "vocab_size": len(tokenizer)}).build()
    torch.nn.Module.float(model)
    return model


def save(name: str, tokenizer: PreTrainedTokenizerFast, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model = build(name, tokenizer)
    torch.nn.Module.to(model, dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", data.tokenizer, tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.parametrize("name", [*DECODERS, "mixln mix", "mixln deepnorm"])
def test_loss_of_packed_rows_is_that_of_their_documents_alone(name: str, data: PreparedData) -> None:
    model = build(name, data.tokenizer)
    batch = data.validation.batch(range(len(data.validation)))
    objective = choose_objective(model)(model)
    with torch.no_grad():
        found = objective(batch.input_ids, batch.position_ids, batch.targets)
        expected = torch.zeros(())
        for tokens, positions, targets in zip(batch.input_ids, batch.position_ids, batch.targets, strict=True):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(tokens)]
            for start, end in zip([0, *starts], starts, strict=False):
                if start < end:
                    logits = model(tokens[None, start:end], use_cache=False).logits[0]
                    expected += F.cross_entropy(logits, targets[start:end], ignore_index=-100, reduction="sum")
    assert (batch.position_ids[:, 1:] == 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_only_a_head_that_is_a_matrix_is_taken_apart(data: PreparedData) -> None:
    assert choose_objective(build("llama", data.tokenizer)) is CausalLanguageModelObjective
    # it caps its logits
    assert choose_objective(build("gemma2", data.tokenizer)) is LogitsObjective


@pytest.mark.parametrize("low_rank", [None, LOW_RANK], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixln lns"])
def test_healing_lowers_the_loss_and_leaves_a_stock_folder(
    name: str, low_rank: LowRankConfig | None, short: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    source = save(name, data.tokenizer, tmp_path / "source", torch.bfloat16)
    if low_rank is not None:
        short = replace(short, optimizer=replace(short.optimizer, learning_rate=3e-2))
    before = validation_loss(AutoModelForCausalLM.from_pretrained(source), data, 3)
    trained = train(FineTuning(source, short, data, low_rank), tmp_path / "run")
    assert trained.validation.mean < before.mean - 0.01
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert type(model) is type(build(name, data.tokenizer))
    assert model.dtype == torch.bfloat16
    # validated in float32, saved in bfloat16
    assert validation_loss(model, data, 3).mean == pytest.approx(trained.validation.mean, abs=0.05)
    assert read_metrics(tmp_path / "run")[-1]["step"] == short.steps


def test_low_rank_updates_change_the_blocks_matrices_by_so_much_rank(
    llama: Path, short: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    train(FineTuning(llama, short, data, LOW_RANK), tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "model"))
    assert before.keys() == after.keys()
    for name, weight in after.items():
        change = (weight - before[name]).double()
        if "proj" in name:
            sizes = torch.linalg.svdvals(change)
            assert sizes[0] > 1e-3
            assert sizes[LOW_RANK.rank] < 1e-4 * sizes[0], name
        else:
            assert not change.any(), name


@pytest.mark.parametrize("low_rank", [None, LOW_RANK], ids=["full", "lora"])
def test_an_interrupted_healing_goes_on_as_if_nothing_had_happened(
    low_rank: LowRankConfig | None, llama: Path, short: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    def interrupt(step: int, *_: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    train(FineTuning(llama, short, data, low_rank), tmp_path / "whole")
    with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
        train(FineTuning(llama, short, data, low_rank), tmp_path / "cut", interrupt)
    assert list((tmp_path / "cut" / "checkpoints").glob("step_*"))
    train(FineTuning(llama, short, data, low_rank), tmp_path / "cut")
    whole, cut = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(weight, cut[name]) for name, weight in whole.items())
    # once more: it is finished, and only validated
    assert train(FineTuning(llama, short, data, low_rank), tmp_path / "cut").train_tokens > 0


def test_checkpoints_of_low_rank_updates_hold_these_alone_and_others_can_be_exported(
    llama: Path, short: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    sizes: dict[str, int] = {}
    for name, low_rank in {"full": None, "lora": LOW_RANK}.items():
        execution = ExecutionConfig(checkpoint_every=2, keep_every=2)
        train(FineTuning(llama, replace(short, execution=execution), data, low_rank), tmp_path / name)
        sizes[name] = sum(file.stat().st_size for file in (tmp_path / name / "checkpoints").rglob("*.distcp"))
    assert sizes["lora"] < 0.5 * sizes["full"]
    export_checkpoint(tmp_path / "full" / "checkpoints" / "step_00000004", tmp_path / "exported")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    finished = load_file(tmp_path / "full" / "model" / "model.safetensors")
    assert exported.keys() == finished.keys()
    assert not all(torch.equal(weight, finished[name]) for name, weight in exported.items())
    with pytest.raises(InputError, match="no checkpoint that can be read"):
        export_checkpoint(tmp_path / "lora" / "checkpoints" / "step_00000004", tmp_path / "other")


@pytest.mark.parametrize("low_rank", [None, LOW_RANK], ids=["full", "lora"])
def test_going_back_to_the_beginning_gives_the_first_weights_again(
    low_rank: LowRankConfig | None,
    llama: Path,
    short: Recipe,
    data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gradient that is not finite in step 2, before any checkpoint: rolled back, and that step left out."""
    steps: list[dict[str, torch.Tensor]] = []

    def poisoned(*args: object, **kwargs: object) -> object:
        built: Callable[..., Any] = build_objective
        objective, module = built(*args, **kwargs)
        forward = objective.forward

        def loss(*tensors: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
            if objective.training:
                steps.append({name: p.detach().clone() for name, p in objective.model.named_parameters()})
            return forward(*tensors, **named) * (float("nan") if len(steps) == 2 else 1.0)

        monkeypatch.setattr(objective, "forward", loss)
        return objective, module

    monkeypatch.setattr(run_module, "build_objective", poisoned)
    patient = replace(
        short, faults=FaultConfig(on_non_finite="roll_back"), execution=ExecutionConfig(checkpoint_every=100)
    )
    with pytest.warns(UserWarning, match="going back to step 0"):
        train(FineTuning(llama, replace(patient, steps=4), data, low_rank), tmp_path)
    first, after = steps[0], steps[3]
    assert all(torch.equal(weight, after[name]) for name, weight in first.items())
    assert any(not torch.equal(weight, steps[1][name]) for name, weight in first.items())


def test_what_cannot_be_trained_on_is_refused(llama: Path, short: Recipe, data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        FineTuning(tmp_path, short, data)
    longer = replace(short, data=replace(short.data, sequence_length=65))
    with pytest.raises(InputError, match="takes no rows of 65 tokens"):
        FineTuning(llama, longer, data).build()
    other = other_tokenizer()
    with pytest.raises(InputError, match="not in the tokens of"):
        FineTuning(llama, short, replace(data, tokenizer=other)).build()
    sharded = replace(short, execution=replace(short.execution, strategy="fsdp"))
    with pytest.raises(InputError, match="cannot merge low-rank updates"):
        FineTuning(llama, sharded, data, LOW_RANK)
    with pytest.raises(InputError, match=r"low_rank.targets.*nothing_of_that_name"):
        FineTuning(llama, short, data, LowRankConfig(targets=("nothing_of_that_name",))).build()
    save("mixln pre", data.tokenizer, tmp_path / "source")
    train(FineTuning(llama, short, data), tmp_path / "run")
    with pytest.raises(InputError, match="another recipe"):
        train(FineTuning(tmp_path / "source", short, data), tmp_path / "run")


def test_a_window_of_attention_shorter_than_the_rows_is_noticed(
    short: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    model = build("mistral", data.tokenizer)
    model.config.sliding_window = 8
    model.save_pretrained(tmp_path)
    data.tokenizer.save_pretrained(tmp_path)
    task = FineTuning(tmp_path, short, data)
    assert type(task.objective(task.build(), torch.device("cpu"), compiled=False)) is DocumentRowsObjective


def other_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["Another text altogether, with other pairs of letters in it. " * 20], 300)


def test_the_recipe_of_a_healing_has_so_many_tokens() -> None:
    recipe = HealingConfig(tokens=100_000, batch_size=4, sequence_length=128).recipe("python", "org/model")
    assert recipe.steps == 196
    assert recipe.steps * recipe.tokens_per_step >= 100_000
    assert recipe.data.tokenizer == "org/model"
    assert HealingConfig(method="lora").low_rank == LowRankConfig(16)
    nonsense: dict[str, Any] = {"tokens": 0, "rank": 0, "batch_size": 0, "learning_rate": -1.0, "sequence_length": 0}
    for name, value in nonsense.items():
        with pytest.raises(InputError, match=f"healing.{name} must be more than 0, not {value}"):
            HealingConfig(**{name: value})
