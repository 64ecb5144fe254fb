"""Small images of three kinds in a folder, and runs of a tiny ViT on them; also on several processes."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mixln.data.image_config import AugmentationConfig, ImageDataConfig
from mixln.tasks.image_classification import train_image_classifier
from mixln.tasks.image_config import ImageTrainingConfig, VisionModelConfig
from mixln.training import ExecutionConfig, OptimizerConfig, TrainingInterrupted

CLASSES = ("bars", "blob", "checks")
SIDE = 16


def draw(kind: str, number: int) -> np.ndarray:
    """Return an image of a kind, (height, width, 3), uint8."""
    generator = np.random.default_rng([CLASSES.index(kind), number])
    y, x = np.mgrid[:SIDE, :SIDE]
    middle = generator.integers(4, 12, 2)
    shapes = {
        "bars": (x + number) // 4 % 2,
        "blob": ((y - middle[0]) ** 2 + (x - middle[1]) ** 2 < 20) * 1,
        "checks": (x // 2 + y // 2 + number) % 2,
    }
    image = shapes[kind][..., None] * generator.integers(100, 200, 3) + generator.integers(0, 50, (SIDE, SIDE, 3))
    return image.astype(np.uint8)


def write_images(folder: Path, train: int = 12, test: int = 5) -> Path:
    """Write {train,test}/CLASS/FILE and return the folder."""
    for split, count, first in (("train", train, 0), ("test", test, 1000)):
        for kind in CLASSES:
            (folder / split / kind).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw(kind, first + number)).save(folder / split / kind / f"{number:03}.png")
    return folder


def tiny_config(source: Path | str, **changes: Any) -> ImageTrainingConfig:
    """Return the configuration of a run of a few seconds."""
    sizes = {"image_size": SIDE, "patch_size": 4, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    model: Any = sizes | {"num_attention_heads": 4, "drop_path_rate": 0.1} | changes.pop("model", {})
    augmentation: Any = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1} | changes.pop("augmentation", {})
    fields: dict[str, Any] = {
        "optimizer": OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.05),
        "steps": 8,
        "batch_size": 12,
        "evaluate_every": 4,
        "evaluation_batch_size": 4,
        "precision": "float32",
        "execution": ExecutionConfig(checkpoint_every=3, layer_metrics_every=0, compile="never", trackers=()),
    }
    return ImageTrainingConfig(
        **(fields | changes),
        data=ImageDataConfig(source=str(source), workers=2),
        augmentation=AugmentationConfig(**augmentation),
        model=VisionModelConfig(**model),
    )


@dataclass(frozen=True)
class ImageJob:
    """A run on images."""

    config: ImageTrainingConfig
    folder: Path
    interrupt_after: int | None = None


def run_images(job: ImageJob) -> None:
    """Make a run, or the first steps of one."""

    def interrupt(step: int, _loss: float, _rate: float) -> None:
        if step == job.interrupt_after:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train_image_classifier(job.config, job.folder, interrupt)
    except TrainingInterrupted:
        assert job.interrupt_after is not None


def run_images_on(rank: int, jobs: list[ImageJob]) -> None:
    """Make runs on each of several processes."""
    del rank
    for job in jobs:
        run_images(job)
