"""Training classifiers of images: what a step trains on, resuming, several processes, scores, and bad input."""

from __future__ import annotations

import importlib.util
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pictures
from processes import run_on_processes
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification

if importlib.util.find_spec("timm") is None:
    pytest.skip("needs mixln[vision]", allow_module_level=True)

from image_tools import CLASSES, SIDE, ImageJob, run_images, run_images_on, tiny_config, write_images

from mixln.data.image_config import AugmentationConfig, ImageDataConfig
from mixln.data.image_workers import _let_posterize_take_all_bits, _seed
from mixln.data.images import read_images
from mixln.errors import InputError
from mixln.tasks.image_classification import ImageClassification, ImageScores, _totals
from mixln.training import Share, read_metrics
from mixln.training.optimizer import build_optimizer

pytestmark = pytest.mark.filterwarnings("ignore::mixln.training.TrainingWarning")

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10.tar.xz"
UNMIXED = {"mixup": 0.0, "cutmix": 0.0}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "images")


@pytest.fixture(scope="module")
def open_task(images: Path) -> Iterator[Callable[..., ImageClassification]]:
    opened: list[ImageClassification] = []

    def build(source: Any = images, **changes: Any) -> ImageClassification:
        opened.append(ImageClassification(tiny_config(source, **changes)))
        return opened[-1]

    yield build
    for task in opened:
        task.workers.close()


@pytest.fixture(scope="module")
def mixed(open_task: Callable[..., ImageClassification]) -> ImageClassification:
    return open_task()


@pytest.fixture(scope="module")
def unmixed(open_task: Callable[..., ImageClassification]) -> ImageClassification:
    return open_task(augmentation=UNMIXED)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_a_batch_is_a_function_of_seed_and_step(mixed: ImageClassification) -> None:
    """And leaves the generators of this process alone."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()
    first, again, other = (mixed.batch(step, Share()) for step in (3, 3, 4))
    assert first["images"].shape == (12, 3, SIDE, SIDE)
    assert torch.equal(first["images"], again["images"])
    assert torch.equal(first["targets"], again["targets"])
    assert not torch.equal(first["images"], other["images"])
    torch.testing.assert_close(first["targets"].sum(1), torch.ones(12))
    assert (first["targets"] > 0).all()
    assert random.getstate() == states[0]
    assert repr(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_a_batch_are_the_batch(
    processes: int, mixed: ImageClassification, unmixed: ImageClassification
) -> None:
    for task in (mixed, unmixed):
        whole = task.batch(2, Share())
        for first in range(processes):
            share = Share(first, processes)
            part = task.batch(2, share)
            for name in ("images", "targets"):
                assert torch.equal(part[name], share.of(whole[name])), name


def test_mixing_is_timms_on_the_whole_batch(mixed: ImageClassification, unmixed: ImageClassification) -> None:
    from timm.data.mixup import Mixup

    for step in range(4):
        plain, found = unmixed.batch(step, Share()), mixed.batch(step, Share())
        labels = torch.tensor([int(mixed.data.train.labels[row]) for row in mixed.rows(step)])
        assert torch.equal(plain["targets"].argmax(1), labels)
        state = np.random.get_state()
        _seed(0, step, "mixing")
        expected, targets = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=3)(plain["images"].clone(), labels)
        np.random.set_state(state)
        assert torch.equal(found["images"], expected)
        torch.testing.assert_close(found["targets"], targets)


def test_labels_are_smoothed_without_mixing_too(unmixed: ImageClassification) -> None:
    batch = unmixed.batch(0, Share())
    expected = F.one_hot(batch["targets"].argmax(1), 3) * 0.9 + 0.1 / 3
    torch.testing.assert_close(batch["targets"], expected)
    objective = unmixed.objective(
        unmixed.build().to_empty(device="cpu").initialize(0), torch.device("cpu"), compiled=False
    )
    with torch.no_grad():
        logits = objective.model.eval()(pixel_values=batch["images"]).logits
        loss = objective(**batch)
    torch.testing.assert_close(loss, -(expected * logits.log_softmax(-1)).sum())


@pytest.mark.slow
def test_the_same_images_from_archive_and_dataset_are_the_same_batches(
    images: Path, unmixed: ImageClassification, open_task: Callable[..., ImageClassification], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
        for split in ("train", "test"):
            archive.add(images / split, split)
    splits: dict[str, Dataset] = {}
    for split in ("train", "test"):
        files = [(file, kind) for kind in CLASSES for file in sorted((images / split / kind).iterdir())]
        columns = {"picture": [str(file) for file, _ in files], "kind": [CLASSES.index(kind) for _, kind in files]}
        features = Features({"picture": Image(), "kind": ClassLabel(names=list(CLASSES))})
        splits[split] = Dataset.from_dict(columns, features=features)
    DatasetDict(**splits).save_to_disk(str(tmp_path / "dataset"))
    expected = unmixed.batch(1, Share())
    for source in (tmp_path / "images.tar.xz", tmp_path / "dataset"):
        found = open_task(source, augmentation=UNMIXED)
        assert found.data.classes == CLASSES
        assert torch.equal(found.batch(1, Share())["images"], expected["images"])
        assert len(found.data.test) == 15


@pytest.mark.slow
def test_the_transforms_of_timm_and_of_torchvision(open_task: Callable[..., ImageClassification]) -> None:
    strong = {"crop": "resized", "auto_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25, **UNMIXED}
    for augmentation in (strong, {"crop": "none", "flip": 0.0, **UNMIXED}):
        task = open_task(augmentation=augmentation)
        batch = task.batch(0, Share())["images"]
        assert batch.shape == (12, 3, SIDE, SIDE)
        assert torch.equal(batch, task.batch(0, Share())["images"])
        row = int(task.rows(0)[0])
        with Pictures.open(str(task.data.train.read(row))) as picture:
            plain = torch.tensor(np.asarray(picture.convert("RGB"))).permute(2, 0, 1) / 255
        colours = AugmentationConfig()
        normalised = (plain - torch.tensor(colours.mean)[:, None, None]) / torch.tensor(colours.std)[:, None, None]
        same = torch.allclose(batch[0], normalised, atol=1e-5)
        assert same == (augmentation["crop"] == "none")


def test_a_policy_that_keeps_no_bit_of_an_image_makes_it_black(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow 13 refuses it, and rand-m9-mstd0.5-inc1 asks for it where its strength comes out as 10."""
    from timm.data import auto_augment

    monkeypatch.setattr(auto_augment, "NAME_TO_OP", dict(auto_augment.NAME_TO_OP))
    _let_posterize_take_all_bits()
    picture = Pictures.new("RGB", (4, 4), (200, 100, 3))
    for name in ("PosterizeIncreasing", "PosterizeOriginal", "Posterize"):
        changed = auto_augment.AugmentOp(name, prob=1.0, magnitude=10).aug_fn
        assert not np.asarray(changed(picture, 0)).any()
        assert np.asarray(changed(picture, 1))[0, 0].tolist() == [128, 0, 0]
        assert np.asarray(changed(picture, 8))[0, 0].tolist() == [200, 100, 3]


def test_what_is_decayed_is_what_timm_decays(unmixed: ImageClassification) -> None:
    """By timm's own groups of its own ViT, of the same sizes."""
    import timm
    from timm.optim._param_groups import param_groups_weight_decay

    model = unmixed.build().to_empty(device="cpu").initialize(0)
    config = replace(unmixed.config.optimizer, weight_decay=0.05)
    sizes = sorted(
        (group["weight_decay"], tuple(parameter.shape))
        for group in build_optimizer(config, model, unmixed.undecayed(model)).param_groups
        for parameter in group["params"]
        if parameter.ndim != 2 or parameter.shape[0] != parameter.shape[1]  # timm has query, key and value in one
    )
    other: Any = timm.create_model(
        "vit_tiny_patch16_224",
        **{"img_size": SIDE, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0},
        num_classes=3,
    )
    fused = [parameter for name, parameter in other.named_parameters() if "qkv" in name or "attn.proj.weight" in name]
    groups: Any = param_groups_weight_decay(other, 0.05, no_weight_decay_list=other.no_weight_decay())
    theirs = sorted(
        (group["weight_decay"], tuple(parameter.shape))
        for group in groups
        for parameter in group["params"]
        if all(parameter is not one for one in fused)
    )
    biases = [(0.0, (32,))] * 12  # of query, key and value
    assert sizes == sorted(theirs + biases)


def test_top_1_and_top_5_with_ties_as_wrong() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 9), torch.randint(9, (40,))
    logits[:3] = 1.0  # no answer
    loss, top1, top5, count = _totals(logits, F.one_hot(labels, 9).float()).tolist()
    order = logits[3:].argsort(-1, descending=True)
    assert top1 == (order[:, 0] == labels[3:]).sum()
    assert top5 == (order[:, :5] == labels[3:, None]).any(-1).sum()
    assert loss == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item(), rel=1e-6)
    assert count == 40
    numbers = ImageScores(1.0, 0.5, None, 10_000).numbers
    assert numbers["top1_high"] - numbers["top1_low"] == pytest.approx(2 * 1.96 * (0.25 / 10_000) ** 0.5, rel=1e-3)
    assert "top5" not in numbers


def test_a_run_that_is_killed_goes_on_to_the_same_weights(images: Path, tmp_path: Path) -> None:
    """With dropped paths, mixup, cutmix and a random crop; and what is saved is what transformers opens."""
    config = tiny_config(images, model={"placement": "mix(alpha=0.5)"})
    run_images(ImageJob(config, tmp_path / "whole"))
    run_images(ImageJob(config, tmp_path / "killed", interrupt_after=5))
    assert not (tmp_path / "killed" / "model").exists()
    run_images(ImageJob(config, tmp_path / "killed"))
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name
    metrics = [line for line in read_metrics(tmp_path / "whole") if "top1" in line]
    assert len(metrics) == 2
    assert metrics[-1]["top1_low"] < metrics[-1]["top1"] < metrics[-1]["top1_high"]
    model: Any = AutoModelForImageClassification.from_pretrained(tmp_path / "whole" / "model")
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.placement == "mix(alpha=0.5)"
    picture = Pictures.open(next((images / "test" / "blob").iterdir()))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "whole" / "model")
    assert processor(images=picture, return_tensors="pt")["pixel_values"].shape == (1, 3, SIDE, SIDE)


@pytest.mark.slow
def test_two_processes_are_one(images: Path, tmp_path: Path) -> None:
    config = tiny_config(images, model={"drop_path_rate": 0.0}, steps=4)
    run_images(ImageJob(config, tmp_path / "one"))
    run_on_processes(run_images_on, [ImageJob(config, tmp_path / "two")])
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    scores = [[line["top1"] for line in read_metrics(tmp_path / run) if "top1" in line][-1] for run in ("one", "two")]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_it_learns(images: Path, tmp_path: Path) -> None:
    config = tiny_config(images, steps=120, augmentation=UNMIXED, model={"drop_path_rate": 0.0})
    run_images(ImageJob(config, tmp_path / "run"))
    found = [line["top1"] for line in read_metrics(tmp_path / "run") if "top1" in line]
    assert found[-1] >= 0.8  # 1 in 3 by chance


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_file(), reason="needs cifar10.tar.xz in ../shared/data")
def test_cifar_10_is_read_as_it_lies_there() -> None:
    found = read_images(ImageDataConfig(source=str(CIFAR)))
    assert len(found.classes) == 10
    assert (len(found.train), len(found.test)) == (50_000, 10_000)
    assert np.bincount(found.train.labels).tolist() == [5000] * 10


def test_damaged_and_colourless_images_are_named_and_counted(
    open_task: Callable[..., ImageClassification], tmp_path: Path
) -> None:
    folder = write_images(tmp_path / "images", train=6, test=3)
    grey, cmyk, cut = (folder / "train" / kind / "x.jpg" for kind in CLASSES)
    Pictures.new("L", (20, 20), 90).save(grey)
    Pictures.new("CMYK", (20, 20)).save(cmyk)
    Pictures.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:500])
    (folder / "test" / "bars" / "text.png").write_text("no image")
    task = open_task(folder)
    assert len(task.data.train) == 20
    assert len(task.data.test) == 9
    said = " ".join(task.warnings())
    assert "1 of 21 images to train on cannot be decoded and are left out: train/checks/x.jpg" in said
    assert "1 of 10 images to validate on cannot be decoded and are left out: test/bars/text.png" in said
    assert "1 CMYK, 1 L" in said
    assert task.batch(0, Share())["images"].isfinite().all()


def empty_class(folder: Path) -> None:
    (folder / "train" / "empty").mkdir()
    (folder / "test" / "empty").mkdir()


def other_classes(folder: Path) -> None:
    (folder / "test" / "blob").rename(folder / "test" / "ball")


def one_class(folder: Path) -> None:
    for split in ("train", "test"):
        for kind in ("bars", "blob"):
            for file in (folder / split / kind).iterdir():
                file.unlink()
            (folder / split / kind).rmdir()


def no_test(folder: Path) -> None:
    (folder / "test").rename(folder / "other")


def two_tests(folder: Path) -> None:
    (folder / "val").mkdir()


def nothing(folder: Path) -> None:
    (folder / "train").rename(folder.parent / "moved")
    (folder / "test").rename(folder.parent / "moved-too")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (empty_class, "no image in train/empty"),
        (other_classes, "blob only in train; ball only in test"),
        (one_class, r"has 1 class\(es\) \(checks\)"),
        (no_test, "one split called test or val.*and has only other, train"),
        (two_tests, "several of these: test, val"),
        (nothing, "one split called train.*and has only nothing"),
    ],
)
def test_folders_that_are_not_as_they_should_be_are_refused(
    damage: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    damage(write_images(tmp_path / "images", train=2, test=1))
    with pytest.raises(InputError, match=reason):
        read_images(ImageDataConfig(source=str(tmp_path / "images")))


def test_a_class_whose_images_are_all_damaged_is_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", train=2, test=1)
    for file in (folder / "train" / "blob").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"no image to train on of blob can be decoded\. 2 of 6 images"):
        ImageClassification(tiny_config(folder))


def dataset(path: Path, columns: dict[str, list[Any]], features: dict[str, Any], test: int = 2) -> None:
    whole = Dataset.from_dict(columns, features=Features(features))
    DatasetDict({"train": whole, "test": whole.select(range(test))}).save_to_disk(str(path))


def test_datasets_archives_and_values_that_do_not_fit_are_refused(images: Path, tmp_path: Path) -> None:
    pictures = [str(next((images / "train" / kind).iterdir())) for kind in CLASSES]
    kinds = {"kind": ClassLabel(names=list(CLASSES))}
    dataset(tmp_path / "text", {"text": ["a", "b", "c"], "kind": [0, 1, 2]}, {"text": Value("string"), **kinds})
    two = {"one": Image(), "two": Image(), **kinds}
    dataset(tmp_path / "two", {"one": pictures, "two": pictures, "kind": [0, 1, 2]}, two)
    dataset(tmp_path / "missing", {"one": pictures, "kind": [0, 1, 1]}, {"one": Image(), **kinds})
    dataset(tmp_path / "unknown", {"one": pictures, "kind": [0, 1, -1]}, {"one": Image(), **kinds})
    (tmp_path / "cut.tar.xz").write_bytes(b"\xfd7zXZ\x00 no archive")
    (tmp_path / "images.zip").write_bytes(b"PK")
    for name, reason in (
        ("text", "data.image_column must name a column of Image, and there are 0"),
        ("two", "and there are 2. Such are: one, two"),
        ("missing", "no image to train on of checks"),
        ("unknown", r"some without a class \(-1\)"),
        ("cut.tar.xz", "cannot be read as a tar archive"),
        ("images.zip", "is no tar archive"),
    ):
        with pytest.raises(InputError, match=reason):
            read_images(ImageDataConfig(source=str(tmp_path / name)))
    with pytest.raises(InputError, match="'three' is none"):
        read_images(ImageDataConfig(source=str(tmp_path / "two"), image_column="three"))
    for changes, reason in (
        ({"model": {"image_size": 30}}, "patches of 4 x 4 pixels do not divide an image of 30 x 30"),
        ({"model": {"num_attention_heads": 5}}, "num_attention_heads"),
        ({"batch_size": 7}, "batch_size must be even, not 7"),
        ({"augmentation": {"auto_augment": "rand-m9"}}, "go with augmentation.crop resized"),
        ({"augmentation": {"mean": (0.5,)}}, "three channels"),
        ({"augmentation": {"flip": 1.5}}, "augmentation.flip"),
    ):
        with pytest.raises(InputError, match=reason):
            ImageClassification(tiny_config(images, **changes))
    with pytest.raises(InputError, match="give a folder"):
        ImageDataConfig("")


def test_what_may_not_change_when_a_run_is_resumed(images: Path, tmp_path: Path) -> None:
    config = tiny_config(images, steps=2)
    run_images(ImageJob(config, tmp_path / "run"))
    stronger = replace(config, augmentation=replace(config.augmentation, label_smoothing=0.2))
    with pytest.raises(InputError, match="label_smoothing"):
        run_images(ImageJob(stronger, tmp_path / "run"))
