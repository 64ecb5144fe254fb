"""The benchmark of a GPU: its plan, its arithmetic, and all of it on a toy model from beginning to end."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from benchmarks.contenders import MATRIX_PEAK, MIXLN
from benchmarks.gpu import budget
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.budget import Part, shared_out
from benchmarks.gpu.diagnosis import config_for
from benchmarks.gpu.markdown import to_markdown
from benchmarks.gpu.options import Options
from benchmarks.gpu.prediction import Prediction, device_in_table
from benchmarks.gpu.results import Results
from benchmarks.gpu.side_by_side import in_groups
from benchmarks.gpu.summary import BEFORE_ROUNDS, prediction_errors, trained
from benchmarks.gpu.turns import Turns
from benchmarks.measure import Measurement, Task
from benchmarks.settings import SEQUENCE_LENGTH, Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings() -> Settings:
    options = Options(rows=4, micro_batch_size=2, turns=Turns(2, 2), num_layers=2)
    return options.settings("nano", Path("tokenizer"))


def test_time_that_a_part_does_not_use_is_that_of_the_parts_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(budget.time, "monotonic", lambda: now)
    left_out: list[str] = []
    parts = [Part(name, weight, lambda _: None, least) for name, weight, least in
             (("a", 1, 0), ("b", 3, 0), ("c", 2, 40), ("d", 2, 0))]  # fmt: skip
    ends: dict[str, float] = {}
    for part, end in shared_out(parts, 180.0, left_out.append):
        ends[part.name] = end
        now = {"a": 102.0, "b": end + 20}.get(part.name, end)
    assert ends["a"] == pytest.approx(100 + 80 / 8)
    assert ends["b"] == pytest.approx(102 + 78 * 3 / 7)
    assert "c" not in ends
    assert left_out == [f"c: {(180 - ends['b'] - 20) / 2:.0f} s were left for it, and it takes 40 at least"]
    assert ends["d"] == pytest.approx(180)


def test_everyone_is_measured_beside_the_first_as_far_as_memory_goes(settings: Settings) -> None:
    needs = {"pre": 3.0, "mix": 3.0, "lns": 3.0, "trainer": 4.0, "huge": 8.0, "too much": 11.0}
    tasks = [Task(label, MIXLN, settings) for label in needs]

    def labels(capacity: float) -> list[list[str]]:
        return [[task.label for task in group] for group in in_groups(tasks, needs, capacity)]

    assert labels(10.0) == [["pre", "mix", "lns"], ["pre", "trainer"], ["huge"]]
    assert labels(100.0) == [list(needs)]
    assert labels(2.0) == []


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA B200", "b200"),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, known: str | None) -> None:
    assert device_in_table(name) == known


def test_a_diagnosis_reads_rows_of_the_model_and_as_many_tokens_as_asked_for() -> None:
    assert config_for(None).sequence_length == config_for(600).sequence_length == SEQUENCE_LENGTH
    assert config_for(600).max_tokens == config_for(600).performance_tokens == 600 < config_for(None).max_tokens


def results_of(settings: Settings) -> Results:
    """Two rounds of `pre` at 1,000 and 2,000 tokens/s, of `lns` at half of that, of the peak at 10 and 20 Gflop/s."""
    found = Results("python -m benchmarks.gpu", {"cores": 2, "commit": "0"}, 600, toy=False, device={"name": "A GPU"})

    def add(label: str, contender: str, number: int, own: Settings, **values: object) -> None:
        found.measurements.append(Measurement(label, contender, number, asdict(own), "ok", values=values))

    for label, own, factor in (("nano pre", settings, 1.0), ("nano lns", replace(settings, placement="lns"), 2.0)):
        add(label, MIXLN, BEFORE_ROUNDS, own, first_step_seconds=7.0)
        for number, seconds in enumerate((1.0, 0.5)):
            steps = [seconds * factor * share for share in (0.9, 1.1)]
            memory = {"peak_bytes": 2**30, "reserved_bytes": 2**31}
            add(label, MIXLN, number, own, step_seconds=steps, predicted=[1000] * 2, slots=[1024] * 2, **memory)
            add("nano peak", MATRIX_PEAK, number, own, small=1e9, large=1e10 * (number + 1))
        add(label, MIXLN, BEFORE_ROUNDS, own, loss=4.0, parameters=1)
    found.predictions["nano lns"] = Prediction(step_seconds=3.0, peak_bytes=2**29, utilization=0.5)
    return found


def test_ratios_and_shares_are_taken_within_rounds(settings: Settings) -> None:
    results = results_of(settings)
    pre, lns = trained(results, "nano", processes=False)
    assert (pre.tokens_per_second.low, pre.tokens_per_second.high) == (pytest.approx(1000), pytest.approx(2000))
    assert pre.speed_ratio is not None
    assert lns.speed_ratio is not None
    assert pre.peak_share is not None
    assert (lns.speed_ratio.low, lns.speed_ratio.high, lns.speed_ratio.count) == (
        pytest.approx(2), pytest.approx(2), 2)  # fmt: skip
    width, inner, vocabulary, layers = 128, 344, 4096, 2
    weights = layers * (4 * width * width + 3 * width * inner + 2 * width) + width + vocabulary * width
    operations = 6 * weights + 12 * layers * width * 256 / 2
    assert pre.peak_share.median == pytest.approx(1024 * operations / 1e10)
    (error,) = prediction_errors(results, [pre, lns])
    assert error.time_error == pytest.approx(3.0 / 1.5 - 1)
    assert error.memory_error == pytest.approx(-0.5)
    assert error.exact_utilization == pytest.approx(1.0)
    assert (pre.loss, pre.first_step_seconds, pre.reserved_bytes) == (4.0, 7.0, 2**31)
    assert not trained(results, "nano", processes=True)


def test_the_table_is_markdown_with_every_contender_and_what_is_missing(settings: Settings) -> None:
    results = results_of(settings)
    results.left_out.append("nano litgpt: not installed")
    results.resume |= {"size": "nano", "steps": 8, "rows": 4, "killed_after": 5, "resumed": {"begun_at": 3}}
    results.resume |= {"identical": False, "largest_difference": 1e-3, "repeats_itself": False}
    text = to_markdown(results)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("|")[1].strip() for row in rows] == ["`pre`", "`lns`", "`nano lns`"]
    assert "2.000 [2.000 .. 2.000]" in rows[1]
    assert "| +100% |" in rows[2]
    assert "**not the same bits**; weights differ by 0.001 at most" in text
    assert "are not the same bits either" in text
    assert "- nano litgpt: not installed" in text
    for block in text.split("\n\n"):
        assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) <= 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--toy", "--sizes", "9b"], "9b"),
        (["--toy", "--others", "nobody"], "nobody"),
        (["--toy", "--minutes", "0"], "minutes"),
        (["--toy", "--rows", "3"], "--rows 3"),
        (["--toy", "--schemes", "pots"], "pots"),
        (["--toy", "--documents", "nowhere"], "nowhere"),
        ([], "--toy"),
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("benchmarks.gpu.__main__.count_gpus", lambda: 0)
    try:
        status: object = main([*arguments, "--cache", str(tmp_path), "--output", str(tmp_path / "out.json")])
    except SystemExit as end:
        status = end.code
    message = capsys.readouterr().err
    assert status == 2
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert named in message


@pytest.mark.slow
def test_a_toy_from_beginning_to_end(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--minutes", "60", "--documents", str(corpus)]
    command += ["--schemes", "lns", "--others", "trainer-packed", "litgpt", "--processes", "2"]
    command += ["--rounds", "2", "--steps", "1", "--diagnosis-tokens", "600", "--cache", str(tmp_path / "cache")]
    finished = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(output.read_text())
    rounds: dict[str, list[int]] = {}
    for one in found["measurements"]:
        rounds.setdefault(one["label"], []).append(one["round"])
    there = {"nano lns", "nano trainer-packed", "nano matrix-peak", "nano ddp x2", "nano fsdp x2"}
    turns = {label: numbers[1:-1] for label, numbers in rounds.items() if numbers[0] == numbers[-1] == BEFORE_ROUNDS}
    # groups that are not trained beside each other have no round in common
    assert {label: turns.get(label) for label in there} == {key: [0, 1] for key in there} | {"nano fsdp x2": [2, 3]}
    litgpt_is_there = importlib.util.find_spec("litgpt") and importlib.util.find_spec("lightning")
    assert ("nano litgpt: not installed" in "".join(found["left_out"])) is not bool(litgpt_is_there)
    losses = {one["label"]: one["values"]["loss"] for one in found["measurements"] if "loss" in one["values"]}
    # of the same rows, shared out in two ways
    assert losses["nano ddp x2"] == pytest.approx(losses["nano fsdp x2"], rel=1e-3)
    assert set(found["predictions"]) == there - {"nano trainer-packed", "nano matrix-peak"}
    assert found["resume"]["identical"] is True
    assert found["resume"]["resumed"]["begun_at"] == 3
    assert found["resume"]["whole"]["begun_at"] == 0
    assert len(found["resume"]["resumed"]["losses"]) == 8
    assert found["diagnosis"]["seconds"] > 0
    text = output.with_suffix(".md").read_text()
    assert text in finished.stdout
    assert "Toy models" in text
