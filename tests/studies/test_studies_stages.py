"""How far a diagnosis is, as it tells it, and as it is shown."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from tiny import tiny_llama
from torch import nn

from mixln import progress
from mixln.data import PreparedData
from mixln.progress import StageProgress, TrainingProgress
from mixln.studies.diagnose import diagnose_model
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.stages import Reported


def test_bars_begin_at_none_and_end_at_all() -> None:
    told: list[tuple[str, int, int]] = []
    reported = Reported(["a", "b"], "letters", lambda *step: told.append(step))
    assert list(reported) == ["a", "b"]
    assert told == [("letters", 0, 2), ("letters", 1, 2), ("letters", 2, 2)]


def test_several_passes_are_one_bar() -> None:
    told: list[int] = []
    reported = Reported("ab", "letters", lambda _stage, done, _total: told.append(done), passes=2)
    assert [*reported, *reported] == ["a", "b", "a", "b"]
    assert told == [0, 1, 2, 3, 4]
    assert list(Reported("ab", "letters", None)) == ["a", "b"]


def test_every_stage_of_a_diagnosis_counts_what_takes_time(data: PreparedData) -> None:
    """Steps are as many as changed models are run on a batch, and blocks and documents gone through alone."""
    layers, told = 4, list[tuple[str, int, int]]()
    model = tiny_llama(data.tokenizer, layers)
    config = DiagnosisConfig(
        sequence_length=16,
        batch_size=2,
        max_tokens=96,
        performance_tokens=64,
        gradient_tokens=64,
        fresh_gradients=True,
        interpretability_tokens=64,
        interpretability_prompts=2,
        run_lengths=(2,),
    )
    texts = ["The assert statement is a convenient way to insert debugging assertions into a program. " * 3] * 3

    def score(scored: nn.Module) -> float:
        for _ in range(3):
            scored(input_ids=torch.tensor([[1, 2, 3]]))
        return 0.0

    diagnose_model(
        model, data.tokenizer, texts, config, scores={"three": score}, report_stage=lambda *step: told.append(step)
    )
    stages = {stage: list(steps) for stage, steps in groupby(told, key=lambda step: step[0])}
    for steps in stages.values():
        done = [step[1] for step in steps]
        assert done == sorted(done)
        assert done[0] == 0
        assert done[-1] == steps[-1][2] > 0
    totals = {stage: steps[-1][2] for stage, steps in stages.items()}
    assert totals["three"] == 3 * (layers + 1)
    assert totals["hidden states"] == 3
    # 3 batches (of 15 predicted tokens a row), each: itself, removals, of two kinds of sublayers too, repeats, swaps,
    # runs of two, blocks' Jacobians
    assert totals["interventions"] == 3 * (1 + 5 * layers + 2 * (layers - 1))
    # 3 batches, then each document of each: 2, 2 and 1
    assert totals["gradient norm"] == totals["gradient norm at init"] == 3 + 5
    assert totals["patching"] == 2 * 2 * layers
    assert totals["entropy neurons"] == 2 * 3


def test_where_there_is_no_terminal_progress_is_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with StageProgress() as bar:
        bar.start("model")
        for done in range(61):
            bar.step("passes", done, 60)
            now[0] += 10
        bar.step("another", 0, 0)
        now[0] += progress.LINE_SECONDS
        bar.step("another", 3, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "model: passes"
    assert [line.split(",")[0] for line in lines[1:3]] == ["model: passes: 3 of 60", "model: passes: 6 of 60"]
    assert len(lines) == 1 + 20 + 2
    assert lines[-2] == "model: another"
    assert lines[-1].startswith("model: another: 3")


def test_a_line_says_the_rate_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with StageProgress() as bar:
        monkeypatch.setattr(bar._progress, "get_time", lambda: now[0])
        bar.step("passes", 0, 100)
        for done in range(1, 21):
            now[0] += 4
            bar.step("passes", done, 100)
    assert "passes: 16 of 100, 4.0 s each, 0:05:36 left" in capsys.readouterr().err
    with TrainingProgress(100, 2) as training:
        monkeypatch.setattr(training._progress, "get_time", lambda: now[0])
        training.start_run(1, "the second")
        # a run that goes on at step 50 has not made these steps now
        for step in range(50, 70):
            now[0] += 2
            training.step(step, 5.25, 1000)
        training.stage("removal", 3, 8)
        now[0] += progress.LINE_SECONDS
        training.stage("removal", 4, 8)
    error = capsys.readouterr().err
    assert "the second: step 164 of 200, loss 5.250, 1,000 tokens/s, 0:01:12 left" in error
    assert "the second, removal: 4 of 8" in error.splitlines()


def test_a_stage_before_the_first_run_is_named_by_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with TrainingProgress(100) as training:
        training.stage("tokenising", 0, 1000)
        now[0] += progress.LINE_SECONDS
        training.stage("tokenising", 500, 1000)
        training.start_run(0, "pre")
        now[0] += progress.LINE_SECONDS
        training.step(10, 5.25, 1000)
        training.stage("measuring", 0, 8)
        training.stage("measuring", 1, 8)
        now[0] += progress.LINE_SECONDS
        training.stage("measuring", 2, 8)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", loss")[0] for line in lines] == [
        "tokenising",
        "tokenising: 500 of 1,000",
        "pre",
        "pre: step 10 of 100",
        "pre, measuring",
        "pre, measuring: 2 of 8",
    ]
