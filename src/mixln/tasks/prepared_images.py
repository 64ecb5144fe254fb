"""Images that runs share: found, decoded once to see which are damaged, and the processes that make batches of them."""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np

from mixln.data.image_workers import ImageWorkers, Item, Made, result_of
from mixln.data.images import ImageData, ImageRows, read_images
from mixln.errors import InputError
from mixln.progress import ReportStage
from mixln.tasks.image_config import ImageTrainingConfig

_NAMED = 5
"""Damaged images that are named; the others are counted."""

_BATCHES_AHEAD = 4


class PreparedImages:
    """Images that can be decoded, and the processes that augment them; `with` ends these at the end of the block.

    Args:
        config: of a run, or of several that differ in nothing that images depend on.
        report: told how many images have been decoded.
        data: the images; None: those of `config.data`.

    Attributes:
        data: the images; its notes say what was left out.
        workers: the processes.

    Raises:
        InputError: timm or torchvision is missing, the images are not as `read_images` wants them, or all of a class
            are damaged.
    """

    def __init__(
        self, config: ImageTrainingConfig, report: ReportStage | None = None, data: ImageData | None = None
    ) -> None:
        require_packages()
        found = read_images(config.data) if data is None else data
        size = (config.model.image_size, config.model.image_size)
        self.workers = ImageWorkers(config.data.workers, size, config.augmentation, len(found.classes))
        # the processes end with this object, or with this process
        weakref.finalize(self, self.workers.close)
        self.data = _checked(found, self.workers, report)

    @property
    def fingerprint(self) -> str:
        """A digest of the names and classes of all images, in their order."""
        return self.data.fingerprint

    def testing(self, parts: Sequence[Sequence[int] | np.ndarray]) -> Iterator[Made]:
        """Yield validation images, resized and cut in their middle, and their classes, made some parts ahead.

        Args:
            parts: rows of each batch; none is empty.

        Raises:
            InputError: a process was killed.
        """
        waiting: deque[Future[Made]] = deque()
        for part in parts:
            waiting.append(self.workers.testing([item_of(self.data.test, row) for row in part]))
            if len(waiting) > _BATCHES_AHEAD:
                yield result_of(waiting.popleft())
        while waiting:
            yield result_of(waiting.popleft())

    @property
    def summary(self) -> str:
        """How many images and classes there are, in words."""
        train, test, classes = len(self.data.train), len(self.data.test), len(self.data.classes)
        return f"images: {train:,} to train on, {test:,} to validate on, {classes} classes"

    def close(self) -> None:
        """End the processes."""
        self.workers.close()

    def __enter__(self) -> PreparedImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_packages() -> None:
    """Make sure that what augments images is installed.

    Raises:
        InputError: it is not.
    """
    try:
        import timm
        import torchvision
    except ImportError as error:
        raise InputError(
            f"training on images needs timm and torchvision ({error}): pip install 'mixln[vision]'"
        ) from error
    del timm, torchvision


def item_of(images: ImageRows, row: int) -> Item:
    """Return an image as workers take it."""
    row = int(row)
    return Item(row, images.names[row], images.read(row), int(images.labels[row]))


def _checked(data: ImageData, workers: ImageWorkers, report: ReportStage | None) -> ImageData:
    """Leave out what cannot be decoded, and say so; every image is decoded once.

    Raises:
        InputError: nothing is left of a class.
    """
    notes = list(data.notes)
    splits: list[ImageRows] = []
    total = len(data.train) + len(data.test)
    for split, images, before in (("to train on", data.train, 0), ("to validate on", data.test, len(data.train))):
        tick = _counting(report, before, total)
        found = workers.inspect([item_of(images, row) for row in range(len(images))], tick)
        damaged = {row for row, (_, fault) in enumerate(found) if fault}
        if damaged:
            named = "; ".join(f"{images.names[row]} ({found[row][1]})" for row in sorted(damaged)[:_NAMED])
            more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
            notes.append(
                f"{len(damaged)} of {len(images)} images {split} cannot be decoded and are left out: {named}{more}"
            )
        modes = Counter(mode for mode, fault in found if not fault and mode != "RGB")
        if modes:
            listed = ", ".join(f"{count} {mode}" for mode, count in sorted(modes.items()))
            notes.append(f"images {split} that are not RGB are made so: {listed}")
        left = images.without(damaged)
        gone = [name for number, name in enumerate(data.classes) if not (left.labels == number).any()]
        if gone and (split == "to train on" or not len(left)):
            raise InputError(f"no image {split} of {', '.join(gone[:_NAMED])} can be decoded. {notes[-1]}")
        splits.append(left)
    train_rows, test_rows = splits
    return ImageData(data.classes, train_rows, test_rows, tuple(notes))


def _counting(report: ReportStage | None, before: int, total: int) -> Callable[[int], None] | None:
    if report is None:
        return None
    return lambda done: report("decoding every image once", before + done, total)
