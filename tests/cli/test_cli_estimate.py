"""`mixln estimate` as its user meets it."""

from __future__ import annotations

import json

import pytest

from mixln.cli import main


def test_tables_say_parameters_memory_time_cost_and_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--recipe", "71m", "--device", "h100", "--count", "8", "--price", "2.5"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "70,578,688",
        "Memory per device",
        "fsdp",
        "tokens per second",
        "cost",
        "Assumptions:",
        "; --utilization sets it",
    ):
        assert part in shown
    assert "Does not fit" not in shown


def test_no_word_of_the_tables_is_broken_on_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    plan = ["--execution.strategy", "fsdp", "--execution.tensor-parallel-size", "4"]
    assert main(["estimate", "--recipe", "7b", "--device", "h100", "--count", "8", *plan]) == 0
    words = capsys.readouterr().out.split()
    for word in ("weights", "gradients", "activations", "libraries", "checkpointing", "parallel", "117.84"):
        assert word in words


def test_json_is_the_same_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["estimate", "--recipe", "71m", "--device", "a100", "--count", "2", "--json"]
    assert main([*arguments, "--execution.strategy", "fsdp", "--utilization", "0.5"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["parameters"]["total"] == 70_578_688
    assert result["device"]["utilization"] == 0.5
    assert [plan["label"] for plan in result["plans"] if plan["chosen"]] == ["fsdp"]


def test_what_does_not_fit_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--recipe", "7b", "--device", "a100", "--count", "8"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Does not fit" in shown
    assert "set execution.strategy: fsdp" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--device h1000", "Did you mean 'h100'"),
        ("--device h100 --count 0", "--count must be at least 1"),
        ("--device h100 --count many", "--count must be a whole number, not 'many'"),
        ("--device h100 --count 3", "not a multiple of the 3 shares"),
        ("--device h100 --utilization 2", "--utilization must be"),
        ("--device h100 --price -1", "--price must be"),
        (
            "--device h100 --count 2 --execution.tensor-parallel-size 4 --execution.strategy fsdp",
            "not a multiple of execution.tensor_parallel",
        ),
        ("--device h100 --model.placement pots", "Did you mean 'post'"),
        ("--device h100 --model.num-attention-heads 5", "not a multiple of the number of attention heads"),
        ("--recipe 72m", "Shipped: pico, nano, 71m"),
    ],
)
def test_bad_input_gets_one_message_and_status_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *arguments.split()]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert [line.startswith("mixln: ") for line in shown.err.splitlines()].count(True) == 1
    assert shown.err.splitlines()[-1].startswith("mixln: ")
    assert "Traceback" not in shown.err
    assert shown.out == ""
