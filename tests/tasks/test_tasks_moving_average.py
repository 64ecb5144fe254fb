"""The exponential moving average of the weights of image runs, beside one that is computed by hand."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pictures
from processes import run_on_processes
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

if importlib.util.find_spec("timm") is None:
    pytest.skip("needs mixln[vision]", allow_module_level=True)

from image_tools import ImageJob, run_images, run_images_on, tiny_config, write_images

from mixln.errors import InputError
from mixln.tasks.image_classification import train_image_classifier
from mixln.tasks.moving_average import EMA_FOLDER, decay_warning, fitting_decay
from mixln.training import Callback, StepRecord, TrainingWarning, read_metrics
from mixln.training.callback import Run

DECAY = 0.4
"""Fits a run of eight steps."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "images")


def weights(folder: Path, name: str = EMA_FOLDER) -> dict[str, Tensor]:
    return load_file(folder / name / "model.safetensors")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


class Seen(Callback):
    """Keeps the weights before the first step and after each, and refuses the update of one step."""

    def __init__(self, refused: int = 0) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self._refused = refused

    def _keep(self, run: Run) -> None:
        self.weights.append({name: one.detach().double().clone() for name, one in run.model.named_parameters()})

    def start(self, run: Run) -> None:
        self._keep(run)

    def accepts(self, step: int, gradient_norm: Tensor) -> Tensor:
        del gradient_norm
        return torch.tensor(step != self._refused)

    def after_step(self, run: Run, record: StepRecord, good: Tensor) -> None:
        del record, good
        self._keep(run)


@pytest.mark.parametrize("refused", [pytest.param(0, marks=pytest.mark.slow), 5])
def test_the_average_is_that_of_the_weights_of_every_step_that_counts(
    refused: int, images: Path, tmp_path: Path
) -> None:
    seen = Seen(refused)
    train_image_classifier(tiny_config(images, ema_decay=DECAY), tmp_path / "run", callbacks=[seen])
    average = seen.weights[0]
    for step, found in enumerate(seen.weights[1:], start=1):
        if step != refused:
            average = {name: DECAY * average[name] + (1 - DECAY) * found[name] for name in average}
    saved = weights(tmp_path / "run")
    assert saved.keys() == average.keys()
    for name, expected in average.items():
        torch.testing.assert_close(saved[name].double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(saved["classifier.weight"], weights(tmp_path / "run", "model")["classifier.weight"])


def test_its_scores_are_those_of_the_folder(images: Path, tmp_path: Path) -> None:
    trained = train_image_classifier(tiny_config(images, ema_decay=DECAY), tmp_path / "run")
    model: Any = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / EMA_FOLDER).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / EMA_FOLDER)
    losses: list[float] = []
    right: list[bool] = []
    for file in sorted((images / "test").rglob("*.png")):
        pixels = processor(images=Pictures.open(file).convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = model(pixel_values=pixels).logits[0]
        number = model.config.label2id[file.parent.name]
        losses.append(float(logits.logsumexp(0) - logits[number]))
        right.append(int(logits.argmax()) == number)
    validated = [line for line in read_metrics(tmp_path / "run") if "top1" in line]
    assert [line["step"] for line in validated if "ema_top1" in line] == [4, 8]
    last = validated[-1]
    assert last["ema_top1"] == pytest.approx(sum(right) / len(right))
    assert last["ema_validation_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-3)
    assert last["ema_top1_low"] <= last["ema_top1"] <= last["ema_top1_high"]
    assert last["ema_validation_loss"] != last["validation_loss"]
    assert trained.result is not None
    assert trained.result["ema_top1"] == last["ema_top1"]


@pytest.mark.slow
def test_what_is_trained_is_the_same_with_an_average_and_without(images: Path, tmp_path: Path) -> None:
    for name, changes in (("with", {"ema_decay": DECAY}), ("without", {})):
        run_images(ImageJob(tiny_config(images, **changes), tmp_path / name))
    assert_same(weights(tmp_path / "with", "model"), weights(tmp_path / "without", "model"))
    assert not (tmp_path / "without" / EMA_FOLDER).exists()
    kept = [
        [
            {name: line[name] for name in line if name in ("step", "loss", "validation_loss")}
            for line in read_metrics(run)
        ]
        for run in (tmp_path / "with", tmp_path / "without")
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("interrupt_after", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_an_interrupted_run_goes_on_to_the_same_average(interrupt_after: int, images: Path, tmp_path: Path) -> None:
    config = tiny_config(images, ema_decay=DECAY)
    run_images(ImageJob(config, tmp_path / "whole"))
    run_images(ImageJob(config, tmp_path / "cut", interrupt_after=interrupt_after))
    assert not (tmp_path / "cut" / EMA_FOLDER).exists()
    with pytest.raises(InputError, match="ema_decay"):
        run_images(ImageJob(replace(config, ema_decay=0.3), tmp_path / "cut"))
    run_images(ImageJob(config, tmp_path / "cut"))
    for name in (EMA_FOLDER, "model"):
        assert_same(weights(tmp_path / "cut", name), weights(tmp_path / "whole", name))
    scores = [
        [{name: line[name] for name in line if name.startswith("ema_")} for line in read_metrics(run)]
        for run in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_shared_out_or_copied_it_is_that_of_one_process(images: Path, tmp_path: Path) -> None:
    config = tiny_config(images, ema_decay=DECAY, model={"drop_path_rate": 0.0}, steps=4)
    run_images(ImageJob(config, tmp_path / "one"))
    jobs = [
        ImageJob(replace(config, execution=replace(config.execution, strategy=strategy)), tmp_path / strategy)
        for strategy in ("ddp", "fsdp")
    ]
    cut = replace(jobs[1], folder=tmp_path / "cut")
    run_on_processes(run_images_on, [*jobs, replace(cut, interrupt_after=3), cut])
    one = weights(tmp_path / "one")
    for name in ("ddp", "fsdp"):
        found = weights(tmp_path / name)
        assert found.keys() == one.keys()
        for parameter, tensor in one.items():
            torch.testing.assert_close(found[parameter], tensor, rtol=1e-3, atol=1e-4)
        last = read_metrics(tmp_path / name)[-1]
        assert last["ema_top1"] == read_metrics(tmp_path / "one")[-1]["ema_top1"]
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "fsdp"))


def test_a_decay_that_keeps_the_initial_weights_is_told_of(images: Path, tmp_path: Path) -> None:
    config = tiny_config(images, ema_decay=0.9999, steps=4)
    with pytest.warns(TrainingWarning, match=r"with ema_decay 0\.9999, 100% of the average are still the initial"):
        train_image_classifier(config, tmp_path / "run")


@pytest.mark.parametrize("steps", [1, 2, 8, 99, 1_000, 31_250, 10_000_000])
def test_the_decay_that_is_named_fits(steps: int) -> None:
    decay = fitting_decay(steps)
    assert 0.0089 < decay**steps <= 0.0096
    assert decay_warning(decay, steps) is None
    warning = decay_warning(1 - (1 - decay) / 2, steps)
    assert warning is not None
    assert warning.endswith(f" {decay} or less fits a run of this length")


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5, float("nan"), "much"])
def test_what_is_no_decay_is_refused(decay: Any) -> None:
    with pytest.raises(InputError, match="ema_decay"):
        tiny_config("images", ema_decay=decay)
