"""Diagnosing and pruning models of images, beside a removal by hand; sources of images, and bad input."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import assert_chromium_is_content
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as Pictures
from tiny import save_tiny_llama
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

if importlib.util.find_spec("timm") is None:
    pytest.skip("needs mixln[vision]", allow_module_level=True)

from image_tools import CLASSES, SIDE, draw, write_images

import mixln
from mixln.cli import main
from mixln.data import PreparedData
from mixln.data.image_config import ImageDataConfig
from mixln.data.measured_images import read_measured_images
from mixln.errors import InputError
from mixln.report.depth_report import DepthReport
from mixln.report.series import Estimate
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.measured_images import measured_images

LAYERS = 4
NAMES = ("checks", "bars", "blob")
"""In another order than that of folders."""


def pixels(images: list[np.ndarray]) -> torch.Tensor:
    """(images, 3, height, width), as the processor below makes them of images of this size."""
    return torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "images", train=1, test=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock ViT that has learned three classes, with its image processor."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "patch_size": 4}
    config: Any = ViTConfig(**sizes, num_hidden_layers=LAYERS, image_size=SIDE)
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: number for number, name in enumerate(NAMES)}
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    train = [(draw(name, number), label) for label, name in enumerate(NAMES) for number in range(20)]
    inputs, labels = pixels([image for image, _ in train]), torch.tensor([label for _, label in train])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(pixel_values=inputs).logits, labels).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("model") / "vit"
    model.eval().save_pretrained(path)
    build: Any = ViTImageProcessor
    build(size={"height": SIDE, "width": SIDE}).save_pretrained(path)
    return path


def opened(folder: Path) -> Any:
    return AutoModelForImageClassification.from_pretrained(folder).eval()


def shown() -> tuple[torch.Tensor, list[str]]:
    """What `write_images` writes to test on, and what each shows."""
    kinds = [kind for kind in CLASSES for _ in range(8)]
    return pixels([draw(kind, 1000 + place % 8) for place, kind in enumerate(kinds)]), kinds


def worth(model: Any) -> tuple[float, float]:
    """Loss and accuracy, by hand."""
    inputs, kinds = shown()
    with torch.no_grad():
        logits = model(pixel_values=inputs).logits.double()
    numbers = [model.config.label2id[kind] for kind in kinds]
    losses = [row.logsumexp(0) - row[number] for row, number in zip(logits, numbers, strict=True)]
    right = [int(row.argmax()) == number for row, number in zip(logits, numbers, strict=True)]
    return float(torch.stack(losses).mean()), sum(right) / len(right)


def without(model: Any, *layers: int) -> Any:
    """A copy without layers, counted from 0."""
    other = copy.deepcopy(model)
    for index in sorted(layers, reverse=True):
        del other.vit.layers[index]
    return other


@pytest.fixture(scope="module")
def report(folder: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DepthReport, Path]:
    out = tmp_path_factory.mktemp("report")
    found = mixln.diagnose(folder, images=images, out=out, run_lengths=(2,), gradient_images=6)
    return found, out


def test_what_a_layer_costs_is_what_the_model_without_it_has(report: tuple[DepthReport, Path], folder: Path) -> None:
    (found,) = report[0].models
    model = opened(folder)
    loss, accuracy = worth(model)
    assert accuracy > 0.8
    assert found.series["performance"].values == pytest.approx([loss], rel=1e-4)
    assert found.series["accuracy"].values == pytest.approx([accuracy])
    assert found.series["most_frequent_class"].values == pytest.approx([1 / 3])
    for layer in range(LAYERS):
        other_loss, other_accuracy = worth(without(model, layer))
        assert found.series["removal"].values[layer] == pytest.approx(other_loss - loss, abs=1e-4)
        assert found.series["accuracy_lost"].values[layer] == pytest.approx(accuracy - other_accuracy)
    for first in range(LAYERS - 1):
        other_loss, other_accuracy = worth(without(model, first, first + 1))
        assert found.series["removal_of_2"].values[first] == pytest.approx(other_loss - loss, abs=1e-4)
        assert found.series["accuracy_lost_of_2"].values[first] == pytest.approx(accuracy - other_accuracy)
    assert found.has_learned
    assert (found.unit, found.tokens, found.performance_tokens, found.documents) == ("images", 24, 24, 24)


def test_the_report_says_images(report: tuple[DepthReport, Path], images: Path, tmp_path: Path) -> None:
    found, out = report
    assert_chromium_is_content(out / "report.html", tmp_path, 1100)
    assert json.loads((out / "report.json").read_text())["models"][0]["unit"] == "images"
    page = (out / "report.html").read_text()
    for hidden in ("script", "style", "svg"):
        page = re.sub(rf"<{hidden}.*?</{hidden}>", "", page, flags=re.DOTALL)
    text = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert f"Images {images}" in text
    assert "24 images, 24 for performance drops" in text
    assert "confidence intervals over images" in text
    assert "accuracy lost" in text
    all_of_it = f"{text} {found}"
    assert not re.findall(r"tokens?\b|documents?\b|\btexts?\b|language model", all_of_it)
    assert {"removal.png", "accuracy_lost.png", "angular_distance.png"} <= {
        file.name for file in (out / "figures").iterdir()
    }


def numbers_of(found: DepthReport) -> dict[str, list[float]]:
    return {name: series.values for name, series in found.models[0].series.items()}


QUICK: dict[str, Any] = {"only": ["removal", "similarity"]}


def test_every_form_of_a_source_gives_the_same(folder: Path, images: Path, tmp_path: Path) -> None:
    expected = numbers_of(mixln.diagnose(folder, images=images, **QUICK))
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(images, arcname=".")
    files = sorted((images / "test").rglob("*.png"))
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSES))})
    table = {"image": [str(file) for file in files], "label": [CLASSES.index(file.parent.name) for file in files]}
    dataset = Dataset.from_dict(table, features=features)
    DatasetDict({"train": dataset.select([0]), "validation": dataset}).save_to_disk(str(tmp_path / "splits"))
    dataset.save_to_disk(str(tmp_path / "one"))
    for source in (images / "test", tmp_path / "images.tar.gz", tmp_path / "splits", tmp_path / "one"):
        found = numbers_of(mixln.diagnose(folder, images=source, **QUICK))
        assert found == expected, source


def test_a_model_in_memory_gives_the_same_and_several_stand_side_by_side(folder: Path, images: Path) -> None:
    model, processor = opened(folder), AutoImageProcessor.from_pretrained(folder)
    small = model.to(torch.bfloat16)
    found = mixln.diagnose(
        [folder, opened(folder), small], images=images, image_processor=processor, names=["a", "b", "c"], **QUICK
    )
    numbers = [{name: series.values for name, series in one.series.items()} for one in found.models]
    assert numbers[0] == numbers[1]
    assert numbers[2]["performance"] == pytest.approx(numbers[0]["performance"], abs=0.05)


def test_batches_of_any_size_give_the_same(folder: Path, images: Path) -> None:
    one, other = (mixln.diagnose(folder, images=images, batch_size=size, **QUICK) for size in (5, 24))
    for name, values in numbers_of(one).items():
        assert values == pytest.approx(numbers_of(other)[name], abs=2e-3 if "angular" in name else 1e-5)


def shown_are_drawn_from_all_alike(folder: Path, images: Path) -> None:
    """Files are in the order of their classes; the first of those that are drawn are not."""
    source = read_measured_images(ImageDataConfig(str(images)))
    model, processor = opened(folder), AutoImageProcessor.from_pretrained(folder)

    def drawn(config: DiagnosisConfig) -> torch.Tensor:
        batches = measured_images(model, processor, source, config).batches
        assert all(batch.targets is not None for batch in batches)
        return torch.cat([batch.arguments["pixel_values"].flatten(1) for batch in batches])

    some, more = (drawn(DiagnosisConfig(max_images=count, batch_size=4)) for count in (9, 15))
    assert len(some) == 9
    assert torch.equal(some, more[:9])
    inputs, kinds = shown()
    place = [int((inputs.flatten(1) - row).abs().sum(1).argmin()) for row in some]
    assert len(set(place)) == 9
    assert len(Counter(kinds[one] for one in place)) == 3


def test_fewer_images_where_many_passes_are_needed(folder: Path, images: Path) -> None:
    found = mixln.diagnose(folder, images=images, max_images=20, performance_images=11, **QUICK).models[0]
    assert (found.tokens, found.performance_tokens, found.documents) == (20, 11, 20)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_model_without_a_head_needs_no_classes(labelled: bool, images: Path, tmp_path: Path) -> None:
    """The turn of the mean of the last hidden states, beside a model whose list of blocks is shorter."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    model: Any = ViTModel(ViTConfig(**sizes, image_size=SIDE, patch_size=4, initializer_range=0.2)).eval()
    source = images
    if not labelled:
        source = tmp_path / "alone"
        source.mkdir()
        for file in (images / "test").rglob("*.png"):
            (source / f"{file.parent.name}-{file.name}").write_bytes(file.read_bytes())
    build: Any = ViTImageProcessor
    processor = build(size={"height": SIDE, "width": SIDE})
    (found,) = mixln.diagnose(model, images=source, image_processor=processor, **QUICK).models
    inputs, _ = shown()

    def pooled(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(pixel_values=inputs).last_hidden_state.double().mean(1)

    whole = pooled(model)
    for layer, value in enumerate(found.series["removal"].values):
        other = copy.deepcopy(model)
        del other.layers[layer]
        assert value == pytest.approx((1 - F.cosine_similarity(pooled(other), whole)).mean().item(), abs=1e-5)
    assert "accuracy" not in found.series
    assert found.unit == "images"


def test_a_model_that_guesses_gets_no_verdict(images: Path, folder: Path) -> None:
    model = ViTForImageClassification(opened(folder).config).eval()
    found = mixln.diagnose(
        model, images=images, image_processor=AutoImageProcessor.from_pretrained(folder), only=["removal"]
    )
    assert "has not learned to tell classes apart, so its 4 layers get no verdict" in found.headline
    assert found.models[0].dead_layers == []
    assert "is right on 33.3%" in str(found)


def test_damaged_images_are_named_and_others_converted(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "images"
    for kind in CLASSES:
        (source / kind).mkdir(parents=True)
        for number in range(2):
            Pictures.fromarray(draw(kind, number)).save(source / kind / f"{number}.png")
    Pictures.fromarray(draw("blob", 5)).convert("L").save(source / "blob" / "grey.png")
    Pictures.fromarray(draw("blob", 6)).convert("CMYK").save(source / "blob" / "cmyk.jpg")
    Pictures.fromarray(draw("bars", 7)).resize((50, 20)).save(source / "bars" / "wide.png")
    whole = (source / "bars" / "0.png").read_bytes()
    (source / "bars" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (source / "checks" / "empty.jpg").write_bytes(b"")
    (source / "checks" / "text.png").write_text("no image")
    (found,) = mixln.diagnose(folder, images=source, **QUICK).models
    assert found.tokens == 9
    (note,) = (note for note in found.notes if "cannot be decoded" in note)
    assert note.startswith("3 images cannot be decoded and are left out: ")
    assert all(name in note for name in ("bars/cut.png", "checks/empty.jpg", "checks/text.png"))


def write(path: Path, kind: str = "blob") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.fromarray(draw(kind, 0)).save(path)


def other_names(path: Path) -> None:
    write(path / "cat" / "0.png")
    write(path / "dog" / "0.png")


def mixed(path: Path) -> None:
    write(path / "blob" / "0.png")
    write(path / "alone.png")


def train_alone(path: Path) -> None:
    write(path / "train" / "blob" / "0.png")


def two_tests(path: Path) -> None:
    write(path / "test" / "blob" / "0.png")
    write(path / "val" / "blob" / "0.png")


def no_classes(path: Path) -> None:
    write(path / "0.png")


def damaged(path: Path) -> None:
    write(path / "blob" / "0.png")
    (path / "blob" / "0.png").write_bytes(b"")


def not_there(path: Path) -> None:
    del path


def nothing(path: Path) -> None:
    path.mkdir()


def no_archive(path: Path) -> None:
    path.write_bytes(b"no archive")


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (other_names, "images", "of cat, dog, and a ViT.* tells checks, bars, blob apart: it has no .* cat, dog"),
        (mixed, "images", "1 images lie beside folders of classes .alone.png"),
        (train_alone, "images", "one split called test or val.*has only train"),
        (two_tests, "images", "several of these: test, val. Name the one to use as --image-split"),
        (no_classes, "images", "tells 3 classes apart .checks, bars, blob., and the images have none"),
        (damaged, "images", "no image can be decoded: blob/0.png .UnidentifiedImageError"),
        (not_there, "images", "there is no /.*images"),
        (nothing, "images", "there is no image in it"),
        (no_archive, "images.tar", "cannot be read as a tar archive"),
        (no_archive, "images.zip", "is no tar archive"),
    ],
)
def test_sources_that_do_not_fit_are_refused_in_one_line(
    make: Callable[[Path], None],
    name: str,
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / name)
    command = ["diagnose", str(folder), "--images", str(tmp_path / name), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert "Traceback" not in error


def test_what_does_not_go_together_is_refused(
    folder: Path, images: Path, data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    language_model = save_tiny_llama(tmp_path / "llama", data.tokenizer, 3)
    source, out = ["--images", str(images)], ["--out", str(tmp_path / "out")]
    bare = tmp_path / "bare"
    opened(folder).save_pretrained(bare)
    unnamed = tmp_path / "unnamed"
    ViTForImageClassification(ViTConfig(**{**opened(folder).config.to_dict(), "id2label": None})).save_pretrained(
        unnamed
    )
    AutoImageProcessor.from_pretrained(folder).save_pretrained(unnamed)
    prune = ["prune", str(folder), str(tmp_path / "pruned"), "--drop", "1"]
    for command, message in (
        (["diagnose", str(folder), *out], "takes images, not text: give images to `mixln diagnose`"),
        (
            ["diagnose", str(language_model), *source, *out],
            "a LlamaForCausalLM does not take images: measure it on text",
        ),
        (["diagnose", str(folder), *source, "--text", "a.txt", *out], "on --images or on --text: leave out one"),
        (["diagnose", str(folder), *source, "--tasks", "x", *out], "--tasks are for language models"),
        (["diagnose", str(folder), "--label-column", "x", *out], "--label-column goes with --images"),
        (["diagnose", str(bare), *source, *out], r"its image processor .preprocessor_config.json. is missing"),
        (["diagnose", str(unnamed), *source, *out], "Write the names of its classes into id2label"),
        (["diagnose", str(folder), *source, "--max-images", "1", *out], "max-images must be at least 2"),
        (prune, "takes images, not text"),
        ([*prune, *source, "--heal"], "--heal trains language models on text"),
        ([*prune, *source, "--text", "a.txt"], "on --images or on --text: leave out one"),
        (["prune", str(language_model), str(tmp_path / "pruned"), "--layers", "1", *source], "does not take images"),
        ([*prune, "--image-column", "x"], "--image-column goes with --images"),
    ):
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert re.search(message, error), (command, error)
        assert "Traceback" not in error
    assert not (tmp_path / "pruned").exists()
    model = opened(folder)
    given: list[tuple[dict[str, Any], str]] = [
        ({"images": images}, "`image_processor` is missing"),
        ({"images": images, "image_processor": data.tokenizer}, "`image_processor` is a"),
        ({"images": images, "tokenizer": data.tokenizer}, "`tokenizer` goes with text"),
        ({"tokenizer": data.tokenizer, "texts": ["a"]}, "takes images, not text"),
    ]
    for arguments, message in given:
        with pytest.raises(InputError, match=message):
            mixln.diagnose(model, **arguments)


def test_datasets_whose_columns_are_not_clear_are_refused(folder: Path, images: Path, tmp_path: Path) -> None:
    files = [str(next((images / "test" / kind).iterdir())) for kind in CLASSES]
    kinds = ClassLabel(names=list(CLASSES))
    table = {"one": files, "two": files, "kind": [0, 1, 2], "other": [0, 1, 2]}
    features = Features({"one": Image(), "two": Image(), "kind": kinds, "other": ClassLabel(names=["a", "b", "c"])})
    Dataset.from_dict(table, features=features).save_to_disk(str(tmp_path / "two"))
    source: dict[str, Any] = {"images": tmp_path / "two", **QUICK}
    with pytest.raises(InputError, match="image_column must name a column of Image, and there are 2"):
        mixln.diagnose(folder, **source)
    with pytest.raises(InputError, match="label_column must name a column of ClassLabel, and there are 2"):
        mixln.diagnose(folder, image_column="one", **source)
    found = mixln.diagnose(folder, image_column="one", label_column="kind", **source)
    assert found.models[0].tokens == 3


@pytest.mark.parametrize("choice", [["--drop", "1"], ["--drop", "2", "--consecutive"], ["--layers", "2"]])
def test_pruning_goes_by_images(
    choice: list[str], folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pruned"
    assert main(["prune", str(folder), str(out), *choice, "--images", str(images)]) == 0
    printed = capsys.readouterr().out
    record = json.loads((out / "pruning.json").read_text())
    removed = [layer - 1 for layer in record["removed_layers"]]
    model, small = opened(folder), opened(out)
    loss, accuracy = worth(model)
    if choice[0] == "--drop":
        count = int(choice[1])
        costs = [worth(without(model, *range(first, first + count)))[0] for first in range(LAYERS + 1 - count)]
        assert removed == list(range(costs.index(min(costs)), costs.index(min(costs)) + count))
        assert (record["images"], record["max_images"], record["text"]) == (str(images), 1000, None)
    else:
        assert removed == [1]
    assert small.config.num_hidden_layers == len(small.vit.layers) == LAYERS - len(removed)
    other_loss, other_accuracy = worth(small)
    cost = record["cost"]
    assert cost["before"]["value"] == pytest.approx(loss, abs=1e-4)
    assert cost["after"]["value"] == pytest.approx(other_loss, abs=1e-4)
    assert cost["accuracy"]["before"]["value"] == pytest.approx(accuracy)
    assert cost["accuracy"]["after"]["value"] == pytest.approx(other_accuracy)
    assert cost["accuracy"]["difference"]["value"] == pytest.approx(other_accuracy - accuracy)
    low, high = cost["accuracy"]["difference"]["interval"]
    assert low <= other_accuracy - accuracy <= high
    assert cost["accuracy"]["constant"] == pytest.approx(1 / 3)
    assert "on 24 images" in printed
    assert Estimate(accuracy).format(".1%") in printed
    assert Estimate(other_accuracy).format(".1%") in printed
    before, after = (AutoImageProcessor.from_pretrained(path).to_dict() for path in (folder, out))
    assert before == after


def test_a_model_in_memory_is_pruned_with_its_processor(folder: Path, images: Path, tmp_path: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(folder)
    found = mixln.prune(
        opened(folder), tmp_path / "out", drop=1, by="angular", images=images, image_processor=processor, max_images=10
    )
    assert found.record.criterion == "angular"
    (row,) = found.rows()
    assert 0 <= row["accuracy_after"] <= row["accuracy_before"] <= 1
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").size == processor.size


def test_bad_news_of_a_classifier_are_told_in_words(folder: Path, images: Path, tmp_path: Path) -> None:
    found = mixln.prune(folder, tmp_path / "out", layers=[1, 2, 3], images=images)
    cost = found.record.cost
    assert cost is not None
    assert cost.accuracy is not None
    assert cost.lost_share == pytest.approx(
        (cost.accuracy.before.value - cost.accuracy.after.value) / (cost.accuracy.before.value - 1 / 3)
    )
    assert cost.lost_share is not None
    assert cost.lost_share > 0.5
    assert "always naming the most frequent class is right on 33.3%" in str(cost.warning)
