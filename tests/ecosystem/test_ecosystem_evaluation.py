"""lm-evaluation-harness scores a model, and the folder it was saved in, with its own `simple_evaluate`."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from ecosystem_tools import build, grown
from tiny import SHARED

from mixln.data import PreparedData
from mixln.models import language_models
from tasks import make_items, write_task

pytest.importorskip("lm_eval", reason="needs mixln[evaluation]")

ARC = SHARED / "data" / "eval" / "arc_easy.jsonl.gz"


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def results(model: Any, tokenizer: Any, tasks: Path) -> tuple[dict[str, float], list[list[float]]]:
    """The numbers of the task `words`, and the log-likelihood of every choice of every item."""
    from lm_eval import simple_evaluate
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager

    # its decorators hide the arguments from type checkers
    wrap, evaluate = cast(Any, huggingface.HFLM), cast(Any, simple_evaluate)
    found = evaluate(
        model=wrap(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=8),
        tasks=["words"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    numbers = {name: value for name, value in found["results"]["words"].items() if name.startswith("acc")}
    return numbers, [[answer[0] for answer in sample["filtered_resps"]] for sample in found["samples"]["words"]]


def check(placement: str, architecture: str, items: list[dict[str, Any]], data: PreparedData, folder: Path) -> None:
    tasks = write_task(folder / "tasks", items)
    model = grown(build(placement, len(data.tokenizer), architecture))
    model.save_pretrained(folder / "model")
    data.tokenizer.save_pretrained(folder / "model")
    numbers, likelihoods = results(model, data.tokenizer, tasks)
    assert len(likelihoods) == len(items)
    assert 0 < numbers["acc,none"] < 1
    assert results(str(folder / "model"), None, tasks) == (numbers, likelihoods)


@pytest.mark.parametrize("placement", ["mix(alpha=0.5)", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_a_model_and_its_folder_have_the_same_scores(placement: str, data: PreparedData, tmp_path: Path) -> None:
    check(placement, "llama", make_items(), data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted({*language_models()} - {"llama"}))
def test_so_have_other_architectures(architecture: str, data: PreparedData, tmp_path: Path) -> None:
    check("mix(alpha=0.5)", architecture, make_items(), data, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not ARC.exists(), reason="needs the real questions in ../shared/data/eval")
def test_real_questions(data: PreparedData, tmp_path: Path) -> None:
    with gzip.open(ARC, "rt", encoding="utf-8") as lines:
        items = [json.loads(line) for line, _ in zip(lines, range(24), strict=False)]
    check("mix(alpha=0.5)", "llama", items, data, tmp_path)


@pytest.mark.slow
def test_the_command_of_the_harness_takes_a_folder_once_mixln_is_imported(data: PreparedData, tmp_path: Path) -> None:
    tasks = write_task(tmp_path / "tasks", make_items())
    grown(build("mix(alpha=0.5)", len(data.tokenizer))).save_pretrained(tmp_path / "model")
    data.tokenizer.save_pretrained(tmp_path / "model")
    command = "import mixln; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    options = ["--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'}", "--device", "cpu"]
    options += ["--tasks", "words", "--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
    finished = subprocess.run(
        [sys.executable, "-c", command, *options], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert 0 < json.loads(written.read_text())["results"]["words"]["acc,none"] < 1
