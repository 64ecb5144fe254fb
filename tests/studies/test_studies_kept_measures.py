"""A diagnosis that ended early goes on where it was, with the numbers of one that did not."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny_llama, tiny_llama
from torch import nn

from mixln.cli import main
from mixln.data import PreparedData
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import Estimate, Series
from mixln.studies import kept_measures, kept_parts
from mixln.studies.diagnose import diagnose_model
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.kept_measures import MEASURED_FOLDER, KeptMeasures
from mixln.studies.measuring import Found

TEXTS = ["The assert statement is a convenient way to insert debugging assertions into a program. " * 3] * 3
SMALL = DiagnosisConfig(sequence_length=32, batch_size=2, max_tokens=200, performance_tokens=100, gradient_tokens=60)


@pytest.fixture
def model(data: PreparedData) -> nn.Module:
    return tiny_llama(data.tokenizer, 3)


def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the measures that are taken from now on, not found finished."""
    names: list[str] = []
    real = kept_measures.KeptMeasures.take

    def take(self: kept_measures.KeptMeasures, name: str, measure: Callable[[], Any]) -> Any:
        def noted() -> Any:
            names.append(name)
            return measure()

        return real(self, name, noted)

    monkeypatch.setattr(kept_measures.KeptMeasures, "take", take)
    return names


@contextmanager
def stopped_after(parts: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C after so many measures have been kept."""
    real, written = kept_parts.write_file, list[Path]()

    def write(path: Path, content: str | bytes) -> Path:
        if len(written) == parts:
            raise KeyboardInterrupt
        written.append(path)
        return real(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(kept_parts, "write_file", write)
        yield


def numbers(diagnosis: ModelDiagnosis) -> ModelDiagnosis:
    """Without the time that it took."""
    return replace(diagnosis, seconds=0.0)


def test_measures_that_are_finished_are_not_taken_again(
    model: nn.Module, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = diagnose_model(model, data.tokenizer, TEXTS, SMALL)
    with stopped_after(3, monkeypatch), pytest.raises(KeyboardInterrupt):
        diagnose_model(model, data.tokenizer, TEXTS, SMALL, folder=tmp_path)
    names = taken(monkeypatch)
    found = diagnose_model(model, data.tokenizer, TEXTS, SMALL, folder=tmp_path)
    assert numbers(found) == numbers(expected)
    assert len(names) == 6  # of 9: of hidden states, of token frequencies, 6 of changed models, and gradient norms
    names.clear()
    assert numbers(diagnose_model(model, data.tokenizer, TEXTS, SMALL, folder=tmp_path)) == numbers(expected)
    assert names == []


@pytest.mark.parametrize("what", ["weights", "text", "config", "scores", "code"])
def test_what_changes_the_numbers_is_measured_anew(
    what: str, model: nn.Module, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Score:
        identity = "one"

        def __call__(self, _: nn.Module) -> float:
            return 1.0

    config = replace(SMALL, measures=("growth",))
    diagnose_model(model, data.tokenizer, TEXTS, config, folder=tmp_path, scores={"own": Score()})
    names, texts = taken(monkeypatch), TEXTS
    diagnose_model(model, data.tokenizer, texts, config, folder=tmp_path, scores={"own": Score()})
    assert names == []
    if what == "weights":
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1e-3
    elif what == "text":
        texts = [*TEXTS[:2], TEXTS[2].replace("assert", "insert")]
    elif what == "config":
        config = replace(config, sequence_length=16)
    elif what == "scores":
        Score.identity = "two"
    else:
        monkeypatch.setattr(kept_measures, "code_digest", lambda: "another")
    diagnose_model(model, data.tokenizer, texts, config, folder=tmp_path, scores={"own": Score()})
    assert names == (["own two"] if what == "scores" else ["own one", "hidden states"])


def test_a_score_without_an_identity_is_taken_each_time(model: nn.Module, data: PreparedData, tmp_path: Path) -> None:
    calls: list[int] = []

    def score(_: nn.Module) -> float:
        calls.append(1)
        return 1.0

    config = replace(SMALL, measures=())
    for number in (1, 2):
        diagnose_model(model, data.tokenizer, TEXTS, config, folder=tmp_path, scores={"own": score})
        assert len(calls) == number * 4


def test_numbers_are_kept_to_the_last_bit_and_infinite_ones_too(tmp_path: Path) -> None:
    """A changed model that overflows is infinite."""
    values = [Estimate(0.1 + 0.2, (-math.inf, math.inf)), Estimate(math.inf), Estimate(-5e-324, (1.0, 2.0))]
    found = Found([Series("removal", "layer", "nats", values, ["a", "b", "c"])], ["A note."])
    identity = {"model": 1}
    KeptMeasures(tmp_path, lambda: identity).take("removal", lambda: found)
    again = KeptMeasures(tmp_path, lambda: identity)
    assert again.has("removal")
    assert again.take("removal", pytest.fail) == found
    assert not KeptMeasures(tmp_path, lambda: {"model": 2}).has("removal")
    assert not KeptMeasures(tmp_path, lambda: None).is_on_disk


def test_damaged_measures_are_taken_again(model: nn.Module, data: PreparedData, tmp_path: Path) -> None:
    config = replace(SMALL, measures=("growth",))
    expected = diagnose_model(model, data.tokenizer, TEXTS, config, folder=tmp_path)
    (file,) = (tmp_path / MEASURED_FOLDER).iterdir()
    for content in ("", "[]", '{"identity": "another", "parts": {}}', file.read_text()[:-20]):
        file.write_text(content)
        assert numbers(diagnose_model(model, data.tokenizer, TEXTS, config, folder=tmp_path)) == numbers(expected)


def test_a_killed_diagnosis_of_two_models_goes_on_from_the_command_line(
    data: PreparedData, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [str(save_tiny_llama(tmp_path / name, data.tokenizer, layers)) for name, layers in (("a", 2), ("b", 3))]
    sizes = ["--sequence-length", "32", "--max-tokens", "200", "--performance-tokens", "100", "--gradient-tokens", "64"]
    command = ["diagnose", *sources, "--text", str(corpus), *sizes]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    killed = f"""
import os, signal
from mixln.studies import kept_measures, kept_parts
real, written = kept_parts.write_file, []
def write(path, content):
    real(path, content)
    written.append(path)
    if len(written) == 12:
        os.kill(os.getpid(), signal.SIGKILL)
kept_parts.write_file = write
from mixln.cli import main
main({[*command, "--out", str(tmp_path / "out")]!r})
"""
    finished = subprocess.run(
        [sys.executable, "-c", killed],
        capture_output=True,
        # part of what the numbers depend on, and an earlier test may have changed them here
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr.decode()
    names = taken(monkeypatch)
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert len(names) == 2 * 9 - 12
    whole, out = (json.loads((tmp_path / name / "report.json").read_text())["models"] for name in ("whole", "out"))
    assert [{**model, "seconds": 0} for model in out] == [{**model, "seconds": 0} for model in whole]
