from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mixln
from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.tasks import Pretraining, Recipe, pretrain
from mixln.training import ExecutionConfig, TrainingInterrupted, read_metrics
from mixln.training import compilation as compilation_module
from mixln.training.compilation import decide_compilation, undo_compilation
from mixln.training.decisions import Settings, decide_settings
from mixln.training.distributed import Processes
from mixln.training.precision import Precision
from mixln.training.run import TrainingRun
from mixln.training.saved_checkpoint import SavedCheckpoint, newest_whole, read_progress

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLOAT32 = Precision("float32", "as the recipe says", "float32")
ALWAYS = ExecutionConfig(compile="always")


def with_slots(recipe: Recipe, slots: int) -> Recipe:
    return replace(recipe, steps=-(-slots // recipe.tokens_per_step))


def decide(recipe: Recipe, device: torch.device) -> bool:
    return decide_compilation(recipe.execution.compile, recipe.last_step * recipe.tokens_per_step, device)


def test_the_length_of_the_run_decides(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation_module, "can_compile", lambda _device: True)
    short, long = with_slots(recipe, 10_000), with_slots(recipe, 1_000_000)
    assert not decide(short, CPU)
    assert decide(long, CPU)
    assert not decide(long, CUDA)
    assert decide(with_slots(recipe, 100_000_000), CUDA)
    assert decide(replace(short, execution=ALWAYS), CPU)
    assert not decide(replace(long, execution=ExecutionConfig(compile="never")), CPU)


def test_without_a_compiler_auto_goes_without_and_always_says_what_to_install(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation_module, "can_compile", lambda _device: False)
    assert not decide(with_slots(recipe, 1_000_000), CPU)
    with pytest.raises(InputError, match=r"compile is always, and this machine lacks a C\+\+ compiler: install g\+\+"):
        decide(replace(recipe, execution=ALWAYS), CPU)


def test_what_is_compiled_are_the_blocks_and_the_final_norm(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    run = TrainingRun(
        Pretraining(recipe, data), tmp_path, Processes(CPU), Settings(compiled=True, threads=1, precision=FLOAT32)
    )
    names = {module: name for name, module in run.model.named_modules()}
    assert [names[m] for m in run.objective.compiled_modules()] == [
        *(f"model.layers.{i}" for i in range(4)),
        "model.norm",
    ]
    assert not any("_orig_mod" in name for name in run.model.state_dict())
    undo_compilation(run.objective)
    assert not any("forward" in vars(module) for module in run.model.modules())


def test_a_compiled_run_cannot_go_on_without_a_compiler(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = SavedCheckpoint(tmp_path / "run" / "checkpoints" / "step_00000001", {"settings": {"compiled": True}})
    saved.progress["settings"]["threads"] = 7
    saved.progress["processes"] = 1
    monkeypatch.setattr(compilation_module, "can_compile", lambda _device: True)
    assert decide_settings(recipe.execution, 0, Processes(CPU), saved, FLOAT32) == Settings(True, 7, FLOAT32)
    # with other processes each has another share of the machine
    saved.progress["processes"] = 2
    assert decide_settings(recipe.execution, 0, Processes(CPU), saved, FLOAT32) == Settings(True, 1, FLOAT32)
    monkeypatch.setattr(compilation_module, "can_compile", lambda _device: False)
    with pytest.raises(InputError, match=r"the run in .*run began with a compiled model, and this machine lacks"):
        decide_settings(recipe.execution, 0, Processes(CPU), saved, FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", mixln.schemes())
def test_every_scheme_computes_the_same_compiled(
    scheme: str, recipe: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    """Also that no scheme breaks the graph (fullgraph) or compiles once per layer."""
    placed = replace(recipe, model=replace(recipe.model, placement=scheme))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, eager = (
        TrainingRun(
            Pretraining(placed, data),
            tmp_path,
            Processes(CPU),
            Settings(compiled=compiled, threads=1, precision=FLOAT32),
        )
        for compiled in (True, False)
    )
    for step in range(4):
        batch = eager.batch(step)
        expected = float(eager.make_step(batch).loss)
        assert float(compiled.make_step(batch).loss) == pytest.approx(expected, abs=1e-4)
    # block of a first kind, of a second, final norm, loss; numbers that differ by layer turn dynamic once
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6


@pytest.mark.slow
def test_a_compiled_run_goes_on_bit_for_bit_as_it_began(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    """Whatever the recipe and the machine's threads say by then: the checkpoint knows."""
    recipe = replace(recipe, precision="bfloat16", execution=ALWAYS)
    whole = pretrain(recipe, data, tmp_path / "whole").model.state_dict()

    def interrupt(step: int, *_: float) -> None:
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        pretrain(recipe, data, tmp_path / "cut", interrupt)
    saved = newest_whole(tmp_path / "cut", read_progress)
    assert saved is not None
    assert saved.progress["settings"] == {"compiled": True, "threads": 1, "precision": "bfloat16"}
    torch.set_num_threads(2)
    try:
        resumed = pretrain(replace(recipe, execution=ExecutionConfig(compile="never")), data, tmp_path / "cut").model
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(weight, whole[name]) for name, weight in resumed.state_dict().items())
    losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1]
