"""A checkpoint as a Hugging Face folder: its model is the one that was being trained, at that step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from training_processes import Job, run_jobs
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixln.data import PreparedData, prepare_data, training_batch
from mixln.errors import InputError
from mixln.tasks import Recipe, pretrain
from mixln.tasks.export import export_checkpoint, find_checkpoint
from mixln.tasks.objective import CausalLanguageModelObjective
from mixln.training import ExecutionConfig, read_metrics
from mixln.training import run as run_module
from mixln.training.saved_checkpoint import checkpoint_step, list_checkpoints

EVERY_FOURTH = ExecutionConfig(checkpoint_every=4, keep_every=4, layer_metrics_every=0, trackers=())


def logits(model: torch.nn.Module, recipe: Recipe, data: PreparedData) -> torch.Tensor:
    batch = training_batch(data.train, 0, recipe.batch_size, recipe.seed)
    with torch.no_grad():
        return model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("placement", ["pre", "mix(alpha=0.5)", "lns", "deepnorm"])
def test_the_exported_model_is_that_of_its_step(
    recipe: Recipe,
    data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    placement: str,
    tied: bool,
) -> None:
    model = replace(recipe.model, placement=placement, tie_word_embeddings=tied)
    recipe = replace(recipe, model=model, execution=EVERY_FOURTH)
    seen: dict[int, torch.Tensor] = {}
    real = run_module.TrainingRun.make_step

    def make_step(run: run_module.TrainingRun, *arguments: object) -> object:
        record = real(run, *arguments)  # pyright: ignore[reportArgumentType]
        seen[run.step] = logits(run.model, recipe, data)
        return record

    monkeypatch.setattr(run_module.TrainingRun, "make_step", make_step)
    pretrain(recipe, data, tmp_path / "run")
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path / "run")] == [4, 8]
    assert not torch.equal(seen[4], seen[8])
    for step in (4, 8):
        out = tmp_path / str(step)
        returned = export_checkpoint(find_checkpoint(tmp_path / "run", step), out)
        exported = AutoModelForCausalLM.from_pretrained(out)
        assert exported.config.placement == placement
        torch.testing.assert_close(logits(exported, recipe, data), seen[step], rtol=1e-6, atol=1e-6)
        assert torch.equal(logits(returned, recipe, data), logits(exported, recipe, data))
        tokenizer = AutoTokenizer.from_pretrained(out)
        assert tokenizer.decode(tokenizer("def f(x):")["input_ids"]) == "def f(x):"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_checkpoint_of_several_processes_is_exported_by_one(
    recipe: Recipe, data: PreparedData, tmp_path: Path, strategy: Literal["ddp", "fsdp"]
) -> None:
    execution = replace(EVERY_FOURTH, strategy=strategy)
    recipe = replace(recipe, execution=execution, evaluate_every=6, model=replace(recipe.model, placement="lns"))
    cache = tmp_path / "cache"
    prepare_data(recipe.data, cache)
    run_jobs([Job(recipe, tmp_path / "run", interrupt_after=6)], cache)
    newest = find_checkpoint(tmp_path / "run")
    assert checkpoint_step(newest) == 6
    assert len(list(newest.glob("*.distcp"))) == 2
    model = export_checkpoint(newest, tmp_path / "out")
    loss, tokens = 0.0, 0
    objective = CausalLanguageModelObjective(model)
    rows = data.validation
    for start in range(0, len(rows), recipe.evaluation_batch_size):
        batch = rows.batch(range(start, min(start + recipe.evaluation_batch_size, len(rows))))
        with torch.no_grad():
            loss += float(objective.batch_loss(batch))
        tokens += batch.num_predicted_tokens
    # what the run itself measured at that step
    assert read_metrics(tmp_path / "run")[-1]["validation_loss"] == pytest.approx(loss / tokens, rel=1e-5)


def interrupt_after(last: int) -> Callable[[int, float, float], None]:
    def interrupt(step: int, *_: float) -> None:
        if step == last:
            os.kill(os.getpid(), signal.SIGINT)

    return interrupt


def test_an_interrupted_run_is_exported_and_then_goes_on(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    recipe = replace(recipe, execution=EVERY_FOURTH)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, data, tmp_path / "run", interrupt_after(5))
    export_checkpoint(find_checkpoint(tmp_path / "run"), tmp_path / "run" / "exported")
    pretrain(recipe, data, tmp_path / "run")
    assert find_checkpoint(tmp_path / "run").name == "step_00000008"


def test_what_is_there_is_not_overwritten(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pretrain(replace(recipe, execution=EVERY_FOURTH), data, tmp_path / "run", interrupt_after(1))
    checkpoint = find_checkpoint(tmp_path / "run")
    (tmp_path / "out").mkdir()
    export_checkpoint(checkpoint, tmp_path / "out")  # an empty folder is as good as none
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    for out in (tmp_path / "out", tmp_path / "out" / "config.json"):
        with pytest.raises(InputError, match="exists already"):
            export_checkpoint(checkpoint, out)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
