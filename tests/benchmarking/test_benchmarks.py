"""The arithmetic of the benchmarks, their rows, and one of each mode from beginning to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.__main__ import main
from benchmarks.analysis import (
    all_speeds,
    count_disturbed,
    estimate,
    fit_line,
    flops_per_token,
    paired_ratio,
    speed,
    speeds,
    step_pairs,
)
from benchmarks.documents import load_documents, make_tokenizer, packed_rows, padded_rows
from benchmarks.measure import Measurement
from benchmarks.report import SchemeReport
from benchmarks.settings import SEQUENCE_LENGTH, Settings
from benchmarks.step_profile import Operator, divide
from tiny import save_tiny_llama

from mixln.data import PreparedData
from mixln.tasks.build import build_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def settings(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    cache = tmp_path_factory.mktemp("benchmark-cache")
    tokenizer = make_tokenizer(str(corpus), 4096, cache)
    return Settings(
        size="nano",
        documents=str(corpus),
        tokenizer=str(tokenizer),
        micro_batch_size=4,
        accumulation=1,
        warm_up_steps=1,
        steps=2,
        threads=1,
        precision="bfloat16",
        cache=str(cache),
    )


def measurement(settings: Settings, step_seconds: list[float], number: int = 0, busy: float = 0.9) -> Measurement:
    count = len(step_seconds)
    values = {
        "step_seconds": step_seconds,
        "processor_seconds": [seconds * busy for seconds in step_seconds],
        "predicted": [900] * count,
        "slots": [1024] * count,
        "padding": [100] * count,
        "peak_bytes": 7,
        "loss": 3.0,
        "parameters": 1000,
        "added_parameters": 7,
    }
    return Measurement("lns", "mixln", number, json.loads(settings.to_json()), "ok", values=values)


def test_speed_leaves_out_the_warm_up(settings: Settings) -> None:
    found = speed(measurement(settings, [50.0, 1.0, 3.0]))
    assert (found.step_seconds, found.first_step_seconds) == (2.0, 50.0)
    assert found.tokens_per_second == pytest.approx((900 + 300) / 2)
    assert found.slots_per_second == pytest.approx((1024 + 1024 / 3) / 2)
    assert (found.busy, found.padding) == (pytest.approx(0.9), pytest.approx(100 / 1024))


def test_disturbed_measurements_do_not_count(settings: Settings) -> None:
    found = [measurement(settings, [9.0, 1.0, 1.0], 0), measurement(settings, [9.0, 5.0, 5.0], 1, busy=0.5)]
    assert list(speeds(found, "lns")) == [0]
    assert [one.tokens_per_processor_second for one in all_speeds(found, "lns").values()] == [1000.0, 360.0]
    assert count_disturbed(found, ["lns"]) == 1


def test_pairs_of_steps_are_told_apart_whoever_came_first(settings: Settings) -> None:
    # warm-up pair, then (scheme, pre) and (pre, scheme)
    one = measurement(settings, [9.0, 9.0, 1.1, 1.0, 2.0, 2.2])
    assert step_pairs([one], "lns") == [(1.0, 1.1), (2.0, 2.2)]
    found = SchemeReport(("lns", "mix")).summary([one])["lns"]
    assert found["step_time_ratio"]["median"] == pytest.approx(1.1)
    assert found["processor_time_ratio"]["median"] == pytest.approx(1.1)
    assert found["added_parameters"] == 7
    assert SchemeReport(("lns", "mix")).summary([one])["mix"] == []


def test_estimates_have_ranges_of_few_values_and_intervals_of_many() -> None:
    few = estimate([3.0, 1.0, 2.0])
    assert (few.median, few.low, few.high, few.count) == (2.0, 1.0, 3.0, 3)
    many = estimate([float(value) for value in range(101)])
    assert many.median == 50.0
    assert 30 < many.low < 50 < many.high < 70
    assert "bootstrap" in many.method
    assert "bootstrap" not in few.method


def test_ratios_are_taken_within_rounds() -> None:
    found = paired_ratio({0: 2.0, 1: 30.0, 2: 5.0}, {0: 1.0, 1: 10.0, 3: 1.0})
    assert found is not None
    assert (found.low, found.median, found.high) == (2.0, 2.5, 3.0)
    assert paired_ratio({0: 1.0}, {1: 1.0}) is None


def test_the_residual_of_a_line_is_a_share_of_the_mean() -> None:
    exact = fit_line([(1, 3.0), (2, 5.0), (4, 9.0)])
    assert (exact.slope, exact.intercept) == (pytest.approx(2), pytest.approx(1))
    assert exact.residual == pytest.approx(0, abs=1e-12)
    assert fit_line([(0, 0.0), (1, 3.0), (2, 0.0)]).residual == pytest.approx(2.0)


def test_operations_of_a_token_are_those_of_its_matrices(settings: Settings) -> None:
    recipe = settings.recipe()
    model = build_model(recipe, load_documents(settings).tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    matrices = sum(
        parameter.numel() for name, parameter in model.named_parameters() if parameter.ndim == 2 and "embed" not in name
    )
    attention = 12 * recipe.model.num_hidden_layers * recipe.model.hidden_size * SEQUENCE_LENGTH / 2
    assert flops_per_token(parameters, settings) == pytest.approx(6 * matrices + attention, rel=1e-2)


def test_all_contenders_get_rows_of_the_same_documents(settings: Settings) -> None:
    data = load_documents(settings)
    packed, padded = packed_rows(data, settings), padded_rows(data, settings)
    assert [counts.slots for counts in packed.counts] == [4 * SEQUENCE_LENGTH] * 3 == [c.slots for c in padded.counts]
    assert all(counts.padding == 0 and counts.predicted > 0.9 * counts.slots for counts in packed.counts)
    # a row of Trainer predicts every token but its first and the padding
    assert all(counts.predicted == counts.slots - counts.padding - 4 for counts in padded.counts)


def test_the_profile_divides_every_operator_once() -> None:
    operators = [
        Operator("aten::mm", [[4096, 512], [512, 1368]], 2, 1.0),
        Operator("aten::mm", [[1368, 4096], [4096, 512]], 1, 2.0),
        Operator("aten::mm", [[2048, 512], [512, 32000]], 1, 4.0),
        Operator("aten::bmm", [[8, 256, 64], [8, 64, 256]], 1, 8.0),
        Operator("aten::_fused_adam_", [], 1, 16.0),
        Operator("graph_0_cpp_fused_amax_exp_softmax_1", [], 1, 32.0),
        Operator("graph_0_cpp_fused_mul_rsqrt_2", [], 1, 64.0),
        Operator("aten::copy_", [[3]], 1, 128.0),
    ]
    parts = divide(operators, 32_000, 4096)
    assert [part.seconds for part in parts.values()] == [128.0, 64.0, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0]
    assert parts["other multiplications of the blocks"].operations == 2 * 2.0 * 4096 * 512 * 1368
    assert parts["attention's multiplications"].operations == 2.0 * 8 * 256 * 64 * 256


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "9b"],
        ["--contenders", "nobody"],
        ["--rounds", "0"],
        ["--schemes", "pots"],
        ["--documents", "nowhere"],
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, corpus: Path
) -> None:
    with_documents = arguments if "--documents" in arguments else [*arguments, "--documents", str(corpus)]
    try:
        status: object = main([*with_documents, "--cache", str(tmp_path), "--output", str(tmp_path / "out.json")])
    except SystemExit as end:
        status = end.code
    message = capsys.readouterr().err
    assert status == 2
    assert message.startswith("error: ")
    assert message.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", [["--contenders", "mixln"], ["--schemes", "mix"]])
def test_a_mode_from_beginning_to_end(mode: list[str], corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        *mode,
        "--documents",
        str(corpus),
        "--cache",
        str(tmp_path / "cache"),
    ]
    command += ["--rounds", "1", "--steps", "2", "--warm-up-steps", "1", "--micro-batch-size", "2"]
    finished = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads(output.read_text())
    assert all(one["status"] == "ok" for one in results["measurements"])
    summary = results["summary"][mode[1]]
    if mode[0] == "--schemes":
        assert summary["step_time_ratio"]["count"] == 2
        assert 0.2 < summary["step_time_ratio"]["median"] < 5
    elif results["summary"]["disturbed"] == 0:  # on a machine that has other work, nothing is summed up
        assert summary["tokens_per_second"]["median"] > 0
        assert summary["peak_bytes"]["median"] > 0


@pytest.mark.slow
def test_fine_tuning_is_measured_beside_trl_on_the_same_rows(
    data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl", reason="needs mixln[sft]")
    from benchmarks import fine_tuning_speed

    model = save_tiny_llama(tmp_path / "model", data.tokenizer, 2)
    rows = [{"prompt": f"is {number} even? ", "completion": ("yes", "no")[number % 2]} for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--batch-size", "2", "--sequence-length", "48", "--steps", "3", "--rounds", "2", "--precision", "float32"]
    output = tmp_path / "speed.json"
    assert fine_tuning_speed.main([str(model), str(tmp_path / "rows.jsonl"), *words, "--output", str(output)]) == 0
    assert "times as fast as TRL's SFTTrainer" in capsys.readouterr().out
    found = json.loads(output.read_text())["rounds"]
    assert [len(one["step_seconds"]) for of_round in found for one in of_round.values()] == [3, 3, 3, 3]
    losses = [of_round[name]["first_loss"] for of_round in found for name in ("mixln", "trl")]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-4)
    assert fine_tuning_speed.main([str(tmp_path / "none"), str(tmp_path / "rows.jsonl")]) == 2
