"""Recipes of images on the command line: what is refused in one message, and a run from its start to its export."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

if importlib.util.find_spec("timm") is None:
    pytest.skip("needs mixln[vision]", allow_module_level=True)

import torch
from image_tools import CLASSES, ImageJob, run_images, tiny_config, write_images
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

import mixln
from mixln.cli import main
from mixln.errors import InputError

SMALL = ["--recipe", "vit-nano-cifar", "--image-size", "16", "--hidden-size", "16", "--intermediate-size", "32"]
SMALL += ["--num-hidden-layers", "2", "--num-attention-heads", "2", "--batch-size", "12", "--compile", "never"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "images")


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("train", ["--text", "python"], "--text is for language models, and this recipe trains a classifier of images"),
        ("compare", ["--tokens", "1M"], "--tokens is for language models, and this recipe trains a classifier"),
        ("estimate", ["--sequence-length", "9"], "--sequence-length is for language models"),
        ("compare", ["--then", "evaluate=arc_easy"], "--then goes on with language models, and this recipe trains"),
        ("data prepare", [], "--recipe vit-nano-cifar trains a classifier of images, and this is for language models"),
        ("train", ["--images", "/nowhere/images"], "there is no /nowhere/images. Give a folder or a tar archive"),
        ("train", ["--images", "pictures.tar.xz"], "there is no pictures.tar.xz"),
        ("train", ["--mixup", "0.1", "--batch-size", "7"], "batch_size must be even, not 7"),
        ("estimate", ["--image-size", "30"], "patches of 4 x 4 pixels do not divide an image of 30 x 30"),
        ("train", ["--placement", "mixx"], "Did you mean"),
        ("train", ["--pooling", "max"], "must be one of class_token, mean, not 'max'"),
        ("compare", ["--drop-path-rate", "1.5"], "must be in [0, 1), not 1.5"),
        ("estimate", ["--device", "h100", "--count", "3"], "is not a multiple of the 3 shares"),
    ],
)
def test_bad_input_ends_in_one_message(
    command: str,
    options: list[str],
    message: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [] if "--images" in options or command == "data prepare" else ["--images", str(images)]
    assert main([*command.split(), "--recipe", "vit-nano-cifar", *given, *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("mixln: ")
    assert message in last


def test_images_without_a_recipe_of_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--images", "somewhere"]) == 2
    assert "choose --recipe vit-nano-cifar, or give --text in its place" in capsys.readouterr().err
    with pytest.raises(InputError, match="`images` is for classifiers of images"):
        mixln.compare(images="somewhere")


def test_a_splits_name_chooses_what_is_validated_on(images: Path) -> None:
    from mixln.data.image_config import ImageDataConfig
    from mixln.data.images import read_images

    with pytest.raises(InputError, match="split called elsewhere, and has only test, train"):
        read_images(ImageDataConfig(str(images), validation_split="elsewhere"))
    (images / "val").mkdir()
    try:
        with pytest.raises(InputError, match=r"several of these: test, val\. Name the one to use"):
            read_images(ImageDataConfig(str(images)))
        assert len(read_images(ImageDataConfig(str(images), validation_split="test")).test) == 15
    finally:
        (images / "val").rmdir()


@pytest.mark.slow
def test_a_run_from_the_command_line_is_a_hugging_face_folder(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--images", str(images), "--steps", "4", "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["rows"]
    assert "steps:      4 of 12 images (48)" in said.err
    assert "images: 36 to train on, 15 to validate on, 3 classes" in said.err
    model = AutoModelForImageClassification.from_pretrained(out / "model")
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert AutoImageProcessor.from_pretrained(out / "model").size == {"height": 16, "width": 16}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::mixln.training.TrainingWarning")
def test_a_checkpoint_of_a_run_on_images_is_exported_with_the_image_processor(images: Path, tmp_path: Path) -> None:
    config = tiny_config(images)
    run_images(ImageJob(config, tmp_path / "run", interrupt_after=5))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "exported"), "--step", "3"]) == 0
    names = {file.name for file in (tmp_path / "exported").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    run_images(ImageJob(replace(config, stop_step=3), tmp_path / "short"))
    exported, short = (
        load_file(path / "model.safetensors") for path in (tmp_path / "exported", tmp_path / "short/model")
    )
    assert exported.keys() == short.keys()
    assert all(torch.equal(exported[name], short[name]) for name in short)
