"""Classifiers of images in a comparison: what is measured, what they must beat, and the words of the report."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification

if importlib.util.find_spec("timm") is None:
    pytest.skip("needs mixln[vision]", allow_module_level=True)

from image_tools import CLASSES, tiny_config, write_images

from mixln.report import from_json, to_json
from mixln.report.aggregate import depth_of
from mixln.report.comparison import Comparison
from mixln.studies.compare import compare
from mixln.tasks.image_config import ImageTrainingConfig
from mixln.tasks.kinds import IMAGES

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::mixln.training.TrainingWarning")]

SCHEMES = ["pre", "mix(alpha=0.5)"]
RARE = CLASSES[-1]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, of which one is rarer than the others."""
    folder = write_images(tmp_path_factory.mktemp("images") / "images")
    for file in sorted((folder / "train" / RARE).iterdir())[8:]:
        file.unlink()
    return folder


@pytest.fixture(scope="module")
def recipe(images: Path) -> ImageTrainingConfig:
    return tiny_config(images, steps=40, evaluate_every=20, augmentation={"mixup": 0.0, "cutmix": 0.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def result(recipe: ImageTrainingConfig, folder: Path) -> Iterator[Comparison]:
    with IMAGES.prepare(recipe, None) as data:
        yield compare(recipe, SCHEMES, data, folder, seeds=[0, 1])


def pictures(images: Path, split: str) -> list[tuple[Path, int]]:
    return [(file, CLASSES.index(kind)) for kind in CLASSES for file in sorted((images / split / kind).iterdir())]


def test_the_numbers_of_a_run_are_those_of_its_saved_model(result: Comparison, images: Path, folder: Path) -> None:
    """In plain code, with transformers' own preparation of images."""
    for run in result.runs:
        assert run.folder is not None
        path = folder / run.folder / "model"
        model: Any = AutoModelForImageClassification.from_pretrained(path).eval()
        processor = AutoImageProcessor.from_pretrained(path)
        test = pictures(images, "test")
        labels = torch.tensor([label for _, label in test])
        opened = [Pictures.open(file).convert("RGB") for file, _ in test]
        with torch.no_grad():
            logits = model(**processor(images=opened, return_tensors="pt")).logits
        losses = F.cross_entropy(logits, labels, reduction="none")
        right = (logits.argmax(-1) == labels).double()
        assert run.validation_loss == pytest.approx(losses.mean().item(), rel=1e-3)
        assert run.values["top1"].value == pytest.approx(right.mean().item())
        counts = np.bincount([label for _, label in pictures(images, "train")])
        constant = -np.log(counts / counts.sum())[labels.numpy()]
        assert result.class_constants is not None
        assert result.class_constants.class_frequencies == pytest.approx(constant.mean())
        assert result.class_constants.accuracy == pytest.approx((labels == int(counts.argmax())).double().mean().item())
        assert run.over_class_frequencies is not None
        assert run.over_class_frequencies.value == pytest.approx(losses.mean().item() - constant.mean(), abs=2e-3)
        assert run.over_most_frequent_class is not None
        over = run.values["top1"].value - result.class_constants.accuracy
        assert run.over_most_frequent_class.value == pytest.approx(over, abs=1e-6)
        assert [point.value for point in run.value_curves["top1"]][-1] == run.values["top1"].value
        assert [point.images for point in run.value_curves["top1"]] == [20 * 12, 40 * 12]
        assert (run.train_tokens, run.perplexity) == (40 * 12, None)


def test_layers_are_measured_on_images(result: Comparison) -> None:
    for run in result.runs:
        assert run.depth is not None
        assert {"gradient_norm_at_init", "removal", "accuracy_lost", "angular_distance", "variance"} <= run.depth.keys()
        assert run.depth["accuracy"].values[0] == pytest.approx(run.values["top1"].value)
        assert len(run.depth["accuracy_lost"].values) == run.num_hidden_layers
        assert "per image" in run.depth["removal"].unit


def test_summaries_and_differences_are_over_seeds(result: Comparison) -> None:
    assert [one.name for one in result.quantities] == ["top1"]  # three classes have no top-5
    for scheme in SCHEMES:
        own = [run.values["top1"].value for run in result.runs if run.placement == scheme]
        found = result.value_of(scheme, "top1")
        assert found is not None
        assert (found.mean, found.deviation) == (pytest.approx(np.mean(own)), pytest.approx(np.std(own, ddof=1)))
    assert result.value_of("pre", "top1").difference is None  # pyright: ignore[reportOptionalMemberAccess]
    assert from_json(to_json(result)) == from_json(json.dumps(result.to_dict()))


def test_the_report_is_about_images_alone(result: Comparison, tmp_path: Path) -> None:
    page = result.save(tmp_path)
    shown = re.sub(r"<(script|style).*?</\1>", "", page.read_text(), flags=re.DOTALL)
    shown = re.sub(r"<[^>]*>", " ", shown)
    for text in (shown, (tmp_path / "table.md").read_text(), str(result)):
        assert "images" in text
        assert "top-1" in text
        assert "class frequencies" in text
        assert not re.search(r"token|perplexity|word order", text), re.search(
            r".{40}(token|perplexity|order).{40}", text
        )
    assert {"loss_curves.png", "accuracy_curves.png", "accuracy_lost.png", "removal.png"} <= {
        file.name for file in (tmp_path / "figures").iterdir()
    } or not depth_of(result)
    (row, *_) = result.rows()
    assert {"top1", "top1_low", "top1_high", "train_images", "images_per_second", "has_learned"} <= row.keys()
    assert not {"perplexity", "train_tokens", "tokens_per_second", "has_learned_order"} & row.keys()


def test_runs_that_learned_nothing_are_marked_and_not_ranked(recipe: ImageTrainingConfig, tmp_path: Path) -> None:
    slow = replace(recipe, steps=2, optimizer=replace(recipe.optimizer, learning_rate=1e-7))
    with IMAGES.prepare(slow, None) as data:
        found = compare(slow, ["pre"], data, tmp_path, seeds=[0])
        again = compare(slow, ["pre"], data, tmp_path, seeds=[0])
    assert again.runs == found.runs
    assert not found.runs[0].has_learned
    assert found.summaries[0].without_order == 1
    assert "No scheme has learned to tell classes apart" in found.headline
    assert "Train longer." in " ".join(found.findings)
    assert not depth_of(found)
