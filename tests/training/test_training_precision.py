"""Which precision a run is in: decided by processor and measurement, once, and on record."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from training_processes import Job, run_jobs
from transformers import AutoConfig

from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.estimation import estimate
from mixln.studies.compare import compare
from mixln.tasks import Recipe, pretrain
from mixln.tasks.language_model import feed_forward_widths
from mixln.training import TrainingInterrupted, decide_precision, read_metrics
from mixln.training import precision as precision_module
from mixln.training.decisions import PRECISION_FILE, agree_on_precision, read_precision, settled_precision
from mixln.training.distributed import Processes
from mixln.training.matrix_speed import bfloat16_speedup
from mixln.training.precision import Precision
from mixln.training.saved_checkpoint import newest_whole, read_progress

CPU = torch.device("cpu")
WIDTHS = (32, 64)

Capabilities = dict[str, Any]
AMX: Capabilities = {"avx2": True, "avx512_bf16": True, "amx_bf16": True}
ZEN_4: Capabilities = {"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}
AVX512: Capabilities = {"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}
AVX2: Capabilities = {"avx2": True, "avx512_bf16": False, "amx_bf16": False}
ARM: Capabilities = {"neon": True, "bf16": True, "sve": True, "sve_bf16": True}
OLD_ARM: Capabilities = {"neon": True, "bf16": False}
UNKNOWN: Capabilities = {"architecture": "riscv64"}


class Machine:
    """A processor with these capabilities that multiplies bfloat16 so many times as fast; counts the measurements."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capabilities: Capabilities, speedup: float) -> None:
        self.speedup, self.asked = speedup, []
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        monkeypatch.setattr(precision_module, "bfloat16_speedup", self.measure)

    def measure(self, *sizes: int) -> float:
        self.asked.append(sizes)
        return self.speedup


@pytest.fixture
def auto(recipe: Recipe) -> Recipe:
    return replace(recipe, precision="auto", steps=8)


@pytest.mark.parametrize(
    ("capabilities", "speedup", "expected"),
    [
        (AMX, 5.0, "bfloat16"),
        (AMX, 1.05, "float32"),  # the units are there, and no gain: a virtual machine, tiny matrices
        (ZEN_4, 2.1, "bfloat16"),
        (ZEN_4, 0.4, "float32"),
        (ARM, 1.6, "bfloat16"),
        (ARM, 1.1, "float32"),
    ],
)
def test_processors_with_bfloat16_units_are_measured(
    capabilities: Capabilities, speedup: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, capabilities, speedup)
    found = decide_precision("auto", CPU, WIDTHS, 100)
    assert found.name == expected
    assert found.autocast_dtype == (torch.bfloat16 if expected == "bfloat16" else None)
    assert machine.asked == [(*WIDTHS, 100)]
    assert found.speedup == speedup
    assert found.device
    assert set(found.bfloat16_units) <= {name for name, there in capabilities.items() if there}
    assert f"{speedup:.2f} times as fast" in found.reason


@pytest.mark.parametrize("capabilities", [AVX512, AVX2, OLD_ARM, UNKNOWN])
def test_where_bfloat16_is_emulated_nothing_is_measured(
    capabilities: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, capabilities, speedup=9.0)
    found = decide_precision("auto", CPU, WIDTHS, 100)
    assert (found.name, found.speedup, found.bfloat16_units, machine.asked) == ("float32", None, (), [])
    assert "has no units for bfloat16" in found.reason


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
@pytest.mark.parametrize("capabilities", [AMX, AVX2])
def test_what_the_recipe_says_is_not_decided(
    wanted: Any, capabilities: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, capabilities, speedup=9.0)
    found = decide_precision(wanted, CPU, WIDTHS, 100)
    assert (found.name, found.reason, machine.asked) == (wanted, "as the recipe says", [])


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_is_asked_for_units_not_for_emulation(
    native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, AMX, speedup=9.0)
    # as on a V100: bfloat16 "is supported" if emulation counts
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "GPU")
    found = decide_precision("auto", torch.device("cuda"), WIDTHS, 100)
    assert (found.name, found.device, machine.asked) == (expected, "GPU", [])


def test_other_devices_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, ARM, speedup=9.0)
    found = decide_precision("auto", torch.device("mps"), WIDTHS, 100)
    assert (found.name, found.device, machine.asked) == ("float32", "mps", [])


def test_the_measurement_leaves_everything_as_it_was() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = bfloat16_speedup(48, 64, 32)
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
    with torch.inference_mode():
        assert bfloat16_speedup(48, 64, 32) == found  # measured once in a process
    assert found > 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_the_measurement_compares_float32_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also inside of an autocast, and whatever the default dtype is."""
    from mixln.training import matrix_speed

    seen: list[torch.dtype] = []

    def watched(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        result = F.linear(values, weight)
        seen.append(result.dtype)
        return result

    monkeypatch.setattr(matrix_speed, "linear", watched)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            bfloat16_speedup(24, 40, 16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen[:4] == seen[4:8] == [torch.float32] * 2 + [torch.bfloat16] * 2


@pytest.mark.parametrize(
    ("model_type", "values", "expected"),
    [
        ("llama", {"hidden_size": 64, "intermediate_size": 100}, (64, 100)),
        ("gpt2", {"n_embd": 24}, (24, 96)),
        ("bloom", {"hidden_size": 24}, (24, 96)),
        ("gemma3", {"text_config": {"hidden_size": 24, "intermediate_size": 60}}, (24, 60)),
        ("blt", {}, (1024, 4096)),  # of parts, each with a width of its own
    ],
)
def test_the_sizes_come_from_any_config(model_type: str, values: dict[str, Any], expected: tuple[int, int]) -> None:
    assert feed_forward_widths(AutoConfig.for_model(model_type, **values)) == expected


def interrupted(recipe: Recipe, data: PreparedData, folder: Path, after: int) -> None:
    def stop(step: int, *_: float) -> None:
        if step == after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterrupted):
        pretrain(recipe, data, folder, stop)


@pytest.mark.parametrize("record_is_lost", [False, True])
def test_a_run_goes_on_in_the_precision_that_it_began_in(
    record_is_lost: bool, auto: Recipe, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, ZEN_4, speedup=2.0)
    whole = pretrain(auto, data, tmp_path / "whole")
    interrupted(auto, data, tmp_path / "cut", after=3)
    saved = newest_whole(tmp_path / "cut", read_progress)
    assert saved is not None
    assert saved.progress["settings"]["precision"] == "bfloat16"
    machine.speedup = 0.5
    if record_is_lost:
        (tmp_path / "cut" / PRECISION_FILE).unlink()
    resumed = pretrain(auto, data, tmp_path / "cut")
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight)
    assert resumed.validation == whole.validation
    assert read_precision(tmp_path / "cut" / PRECISION_FILE).name == "bfloat16"
    # and a finished one is validated again in it
    assert pretrain(auto, data, tmp_path / "cut").validation.mean == pytest.approx(whole.validation.mean, rel=1e-6)
    # the other decision would have been another run
    other = pretrain(auto, data, tmp_path / "other")
    assert other.validation.mean != pytest.approx(whole.validation.mean, rel=1e-6)
    assert read_precision(tmp_path / "other" / PRECISION_FILE).name == "float32"


def test_the_decision_is_on_record_with_processor_and_measurement(
    auto: Recipe, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch, ZEN_4, speedup=2.25)
    monkeypatch.setattr(precision_module, "processor_name", lambda: "AMD EPYC 9654")
    pretrain(replace(auto, steps=2), data, tmp_path)
    assert json.loads((tmp_path / PRECISION_FILE).read_text()) == {
        "name": "bfloat16",
        "reason": "on AMD EPYC 9654 with avx512_bf16, products of the run's shapes were 2.25 times as fast in bfloat16 "
        "as in float32",
        "wanted": "auto",
        "device": "AMD EPYC 9654",
        "bfloat16_units": ["avx512_bf16"],
        "speedup": 2.25,
    }


def test_what_was_decided_outlives_recipes_that_say_more(tmp_path: Path) -> None:
    """Comparisons of several recipes may share a folder."""
    decided = Precision("bfloat16", "measured", "auto")
    said = Precision("float32", "as the recipe says", "float32")
    assert settled_precision(tmp_path, "float32", lambda: said) == said
    assert settled_precision(tmp_path, "auto", lambda: decided) == decided
    assert settled_precision(tmp_path, "float32", lambda: said) == said
    assert settled_precision(tmp_path, "auto", lambda: replace(decided, name="float32")) == decided


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"name": "int8", "reason": "", "wanted": "auto", "device": "", "bfloat16_units": [], "speedup": null}',
        '{"name": "float32", "reason": "", "wanted": [], "device": "", "bfloat16_units": [], "speedup": null}',
        '{"name": "float32", "reason": "", "wanted": "auto", "device": "", "bfloat16_units": 3, "speedup": null}',
        '{"name": "float32", "reason": "", "wanted": "auto", "device": "", "bfloat16_units": [], "speedup": HUGE}',
    ],
)
def test_a_damaged_record_is_refused(content: str, auto: Recipe, data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / PRECISION_FILE).write_text(content.replace("HUGE", "1" + "0" * 400))
    with pytest.raises(InputError, match=PRECISION_FILE):
        pretrain(auto, data, tmp_path)


def test_all_runs_of_a_comparison_are_in_one_precision(
    auto: Recipe, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, ZEN_4, speedup=2.0)
    short = replace(auto, steps=4)
    first = compare(short, ["pre"], data, tmp_path)
    machine.speedup = 0.5
    result = compare(short, ["pre", "post", "mix"], data, tmp_path)
    records = [read_precision(path) for path in tmp_path.rglob(PRECISION_FILE)]
    assert [one.name for one in records] == ["bfloat16"] * 4
    assert len(machine.asked) == 1
    assert result.facts["Precision"] == first.facts["Precision"]
    assert result.facts["Precision"].startswith("bfloat16 autocast, float32 weights: on ")
    assert "2.00 times as fast" in result.facts["Precision"]


def test_a_run_that_began_in_another_precision_than_its_comparison_is_refused(
    auto: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    pretrain(replace(auto, steps=2), data, tmp_path, precision=Precision("bfloat16", "measured", "auto"))
    with pytest.raises(InputError, match="began in bfloat16, but the runs it is compared with are in float32"):
        pretrain(replace(auto, steps=2), data, tmp_path, precision=Precision("float32", "measured", "auto"))


class Second(Processes):
    """What the second of two processes sees; the first has decided."""

    @property
    def is_main(self) -> bool:
        return False

    def from_main(self, thing: Any) -> Any:
        assert thing is None
        return Precision("bfloat16", "measured by the first", "auto")


def test_the_main_process_decides_for_all(auto: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, ZEN_4, speedup=0.5)
    found = agree_on_precision(auto.precision, (*WIDTHS, 100), tmp_path, Second(CPU))
    assert (found.name, machine.asked, list(tmp_path.iterdir())) == ("bfloat16", [], [])


@pytest.mark.slow
def test_processes_that_measure_differently_train_in_one_precision(
    auto: Recipe, tmp_path: Path, data: PreparedData
) -> None:
    jobs = [
        Job(replace(auto, steps=4), tmp_path / str(speedup), speedups=(speedup, 1 / speedup)) for speedup in (2, 0.5)
    ]
    run_jobs(jobs, tmp_path / "cache")
    for job, expected in zip(jobs, ("bfloat16", "float32"), strict=True):
        assert read_precision(job.folder / PRECISION_FILE).name == expected
        alone = pretrain(replace(job.recipe, precision=expected), data, tmp_path / f"{expected} alone")
        assert read_metrics(job.folder)[-1]["validation_loss"] == pytest.approx(alone.validation.mean, rel=1e-4)


@pytest.mark.parametrize(("speedup", "expected"), [(2.0, "bfloat16"), (0.5, "float32")])
def test_an_estimate_for_this_machine_is_in_the_precision_of_a_run(
    speedup: float, expected: str, auto: Recipe, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch, ZEN_4, speedup)
    assumptions = " ".join(estimate(auto, "cpu").assumptions)
    pretrain(replace(auto, steps=1), data, tmp_path)
    assert read_precision(tmp_path / PRECISION_FILE).name == expected
    assert f"precision {expected} (on " in assumptions
    assert ("matrices multiplied in bfloat16" in assumptions) == (expected == "bfloat16")
