"""Images that a model is measured on: of a source to train on the test split, or images alone, with classes or without.

{test,val,...}/CLASS/FILE  in a folder, or in a tar archive, as to train on
CLASS/FILE                 in a folder or archive without splits
FILE                       without classes
a dataset of Hugging Face  its split to test on, or its only one; without a column of class labels, without classes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mixln.data.image_config import ImageDataConfig
from mixln.data.image_workers import open_image
from mixln.data.images import (
    ARCHIVES,
    ENDINGS,
    TEST_SPLITS,
    TRAIN_SPLITS,
    Encoded,
    ImageRows,
    column_of,
    open_archive,
    open_dataset,
    test_split,
)
from mixln.errors import InputError
from mixln.sources import check_images

_OPTION = "`image_split`"
"""What names a split."""

_File = tuple[tuple[str, ...], Encoded]
"""The parts of an image's path in its source, and the image."""


@dataclass(frozen=True)
class MeasuredImages:
    """Images that a model is measured on.

    Attributes:
        classes: names of the classes, in the order of the labels; empty: there are none.
        rows: the images; the label of one without a class is -1.
    """

    classes: tuple[str, ...]
    rows: ImageRows

    def decoded(self, row: int, mode: str) -> Any:
        """Return an image of PIL.

        Args:
            row: which.
            mode: of PIL, such as RGB.

        Raises:
            InputError: it cannot be decoded; names it.
        """
        encoded = self.rows.read(row)
        try:
            return open_image(encoded).convert(mode)
        except Exception as error:  # damaged files raise errors of every kind
            reason = " ".join(str(error).split())[:100]
            raise InputError(f"{self.rows.names[row]} ({type(error).__name__}: {reason})") from error


def read_measured_images(config: ImageDataConfig) -> MeasuredImages:
    """Find the images of a source that a model is measured on.

    Raises:
        InputError: there is no such source; it has no images, or no split to test on; some of its images have classes
            and others have none; or a dataset has no such columns.
    """
    path = Path(config.source).expanduser()
    if path.is_file():
        if not path.name.endswith(ARCHIVES):
            raise InputError(f"{path} is no tar archive ({', '.join(ARCHIVES)}) and no folder of images")
        return _from_files(config, sorted(_archived(path), key=lambda file: file[0]))
    if path.is_dir() and not any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        return _from_files(config, [(file.relative_to(path).parts, str(file)) for file in files])
    check_images(config.source)
    return _from_dataset(config, path)


def _archived(path: Path) -> Iterator[_File]:
    """The images of an archive but for those of a split to train on, which nobody reads."""
    with open_archive(path, str(path)) as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if not member.isfile() or not member.name.lower().endswith(ENDINGS):
                continue
            if len(parts) > 2 and parts[0] in TRAIN_SPLITS:
                yield parts, b""
                continue
            content = archive.extractfile(member)
            assert content is not None
            yield parts, content.read()


def _from_files(config: ImageDataConfig, files: list[_File]) -> MeasuredImages:
    source = config.source
    if not files:
        raise InputError(f"{source}: there is no image in it (known endings: {', '.join(ENDINGS)})")
    tops = {parts[0] for parts, _ in files if len(parts) > 1}
    if config.validation_split or tops & set(TEST_SPLITS) or (tops and tops <= set(TRAIN_SPLITS)):
        split = test_split(source, tops, config.validation_split, _OPTION)
        files = [(parts[1:], encoded) for parts, encoded in files if len(parts) > 1 and parts[0] == split]
        source = f"{source}/{split}"
    alone = ["/".join(parts) for parts, _ in files if len(parts) == 1]
    if alone and len(alone) < len(files):
        raise InputError(
            f"{source}: {len(alone)} images lie beside folders of classes ({', '.join(alone[:3])}). Put each into the "
            "folder of its class, or all into one folder without classes"
        )
    classes = () if alone else tuple(sorted({parts[0] for parts, _ in files}))
    labels = [classes.index(parts[0]) if classes else -1 for parts, _ in files]
    rows = ImageRows(
        ["/".join(parts) for parts, _ in files], np.asarray(labels, np.int64), [encoded for _, encoded in files]
    )
    return MeasuredImages(classes, rows)


def _from_dataset(config: ImageDataConfig, path: Path) -> MeasuredImages:
    from datasets import ClassLabel, DatasetDict, Image

    loaded = open_dataset(config.source, path)
    split = ""
    if isinstance(loaded, DatasetDict):
        alone = len(loaded) == 1 and config.validation_split is None
        split = next(iter(loaded)) if alone else test_split(config.source, loaded, config.validation_split, _OPTION)
        loaded = loaded[split]
    image = column_of(config.source, loaded, config.image_column, Image, "image_column")
    encoded = loaded.cast_column(image, Image(decode=False))[image]
    names = [f"{split}[{row}]" for row in range(len(loaded))]
    has_classes = any(isinstance(feature, ClassLabel) for feature in loaded.features.values())
    if not has_classes and config.label_column is None:
        return MeasuredImages((), ImageRows(names, np.full(len(loaded), -1), encoded))
    label = column_of(config.source, loaded, config.label_column, ClassLabel, "label_column")
    labels = np.asarray(loaded[label], dtype=np.int64)
    if len(labels) == 0 or labels.min() < 0:
        raise InputError(f"{config.source}: the split {split} has no images, or some without a class (-1)")
    return MeasuredImages(tuple(loaded.features[label].names), ImageRows(names, labels, encoded))
