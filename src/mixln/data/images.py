"""Images with classes: where they are, and what is wrong with them. Nothing is decoded here.

{train,test}/CLASS/FILE    in a folder, or in a tar archive
a dataset of Hugging Face  with a column of images and one of class labels
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mixln.data.image_config import ImageDataConfig
from mixln.errors import InputError
from mixln.hub import hub_access

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
TRAIN_SPLITS = ("train", "training")
_VALIDATION = ("val", "valid", "validation", "eval")
TEST_SPLITS = ("test", *_VALIDATION)
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")

Encoded = str | bytes
"""An image that is not decoded: the path of its file, or what is in it."""


@dataclass(frozen=True)
class ImageRows:
    """Images of one split, in an order that does not change.

    Attributes:
        names: of the images, for messages.
        labels: the class of each, shape (images,), int64.
        encoded: the images; of a dataset, rows that are read when they are asked for.
    """

    names: Sequence[str]
    labels: np.ndarray
    encoded: Any

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> Encoded:
        """Return one image as it is stored."""
        found = self.encoded[int(row)]
        if isinstance(found, dict):
            found = found["bytes"] if found.get("bytes") is not None else found["path"]
        return found

    def without(self, rows: set[int]) -> ImageRows:
        """Return the images but for some."""
        kept = [row for row in range(len(self)) if row not in rows]
        if not rows:
            return self
        names = [self.names[row] for row in kept]
        return ImageRows(names, self.labels[kept], _Selected(self.encoded, kept))


@dataclass(frozen=True)
class _Selected:
    encoded: Any
    rows: Sequence[int]

    def __getitem__(self, row: int) -> Any:
        return self.encoded[self.rows[row]]


@dataclass(frozen=True)
class ImageData:
    """Images to train and to validate on.

    Attributes:
        classes: names of the classes, in the order of the labels.
        train: images to train on.
        test: images to validate on.
        notes: what was found that its owner should know, in sentences.
    """

    classes: tuple[str, ...]
    train: ImageRows
    test: ImageRows
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A digest of the names and classes of all images, in their order."""
        digest = hashlib.blake2b(repr(self.classes).encode(), digest_size=16)
        for rows in (self.train, self.test):
            digest.update(rows.labels.tobytes())
            for name in rows.names:
                digest.update(name.encode() + b"\0")
        return digest.hexdigest()


def read_images(config: ImageDataConfig) -> ImageData:
    """Find the images of a source.

    Raises:
        InputError: there is no such source; it has no images to train or validate on, or fewer than two classes; a
            class has no images, or the classes of both splits differ; or a dataset has no such columns.
    """
    path = Path(config.source).expanduser()
    if path.is_file():
        if not path.name.endswith(ARCHIVES):
            raise InputError(f"data.source: {path} is no tar archive ({', '.join(ARCHIVES)}) and no folder")
        return _from_files(str(path), _archive(path), config.validation_split)
    if path.is_dir() and not (path / "dataset_dict.json").is_file():
        return _from_files(str(path), _folder(path), config.validation_split)
    return _from_dataset(config, path)


_Files = dict[str, dict[str, list[tuple[str, Encoded]]]]
"""By split and class, the name and the image of each file."""


def _folder(path: Path) -> _Files:
    found: _Files = {}
    for split in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        classes = found.setdefault(split.name, {})
        for entry in sorted(entry for entry in split.iterdir() if entry.is_dir()):
            files = sorted(file for file in entry.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
            classes[entry.name] = [(file.relative_to(path).as_posix(), str(file)) for file in files]
    return found


@contextmanager
def open_archive(path: Path, named: str) -> Iterator[tarfile.TarFile]:
    """Open a tar archive to be read inside the block.

    Args:
        path: of the archive.
        named: what it is called in the message.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{named} cannot be read as a tar archive ({error}). Fetch it again") from error


def _archive(path: Path) -> _Files:
    found: _Files = {}
    with open_archive(path, f"data.source: {path}") as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if len(parts) == 2 and member.isdir():
                found.setdefault(parts[0], {}).setdefault(parts[1], [])
            if len(parts) < 3 or not member.isfile() or not member.name.lower().endswith(ENDINGS):
                continue
            content = archive.extractfile(member)
            assert content is not None
            found.setdefault(parts[0], {}).setdefault(parts[1], []).append((member.name, content.read()))
    for classes in found.values():
        for files in classes.values():
            files.sort(key=lambda file: file[0])
    return found


def _from_files(source: str, found: _Files, validation: str | None) -> ImageData:
    splits = _splits_of(source, found, validation)
    both = [found[split] for split in splits]
    for split, classes in zip(splits, both, strict=True):
        if empty := [name for name, files in classes.items() if not files]:
            raise InputError(
                f"{source}: no image in {split}/{', '.join(empty[:5])} (known endings: {', '.join(ENDINGS)}). Put some "
                "there, or delete the folder"
            )
    _same_classes(source, splits, [set(classes) for classes in both])
    names = tuple(sorted(both[0]))
    _two_classes(source, names)
    rows = [
        ImageRows(
            [name for label in names for name, _ in classes[label]],
            np.repeat(np.arange(len(names)), [len(classes[label]) for label in names]).astype(np.int64),
            [image for label in names for _, image in classes[label]],
        )
        for classes in both
    ]
    train_rows, test_rows = rows
    return ImageData(names, train_rows, test_rows)


def _splits_of(source: str, found: Any, validation: str | None) -> list[str]:
    """The names of the splits to train and to validate on."""
    return [_split_of(source, found, TRAIN_SPLITS, ""), test_split(source, found, validation, "data.validation_split")]


def test_split(source: str, found: Any, wanted: str | None, option: str) -> str:
    """Return the name of the split that is not for training.

    Args:
        source: for errors.
        found: the names that there are.
        wanted: the one that is asked for, where val, valid and validation are one name; None: whichever there is.
        option: what names one, for errors.

    Raises:
        InputError: there is none, or several.
    """
    names = TEST_SPLITS if wanted is None else _VALIDATION if wanted in _VALIDATION else (wanted,)
    return _split_of(source, found, names, f". Name the one to use as {option}")


def _split_of(source: str, found: Any, names: Sequence[str], fix: str) -> str:
    there = [name for name in names if name in found]
    if len(there) != 1:
        named = f"several of these: {', '.join(there)}{fix}"
        has = named if there else f"only {', '.join(sorted(found)) or 'nothing'}"
        raise InputError(f"{source} must have one split called {' or '.join(names)}, and has {has}")
    return there[0]


def _same_classes(source: str, splits: Sequence[str], classes: Sequence[set[str]]) -> None:
    if classes[0] != classes[1]:
        alone = [
            f"{', '.join(sorted(own - other)[:5])} only in {split}"
            for split, own, other in ((splits[0], *classes), (splits[1], *classes[::-1]))
            if own - other
        ]
        raise InputError(f"{source}: the splits have other classes: {'; '.join(alone)}. Give both the same")


def _two_classes(source: str, names: Sequence[str]) -> None:
    if len(names) < 2:
        raise InputError(f"{source} has {len(names)} class(es) ({', '.join(names)}): there is nothing to be told apart")


def open_dataset(source: str, path: Path) -> Any:
    """Open what `datasets` has saved in a folder, or has on the hub.

    Raises:
        InputError: it cannot be opened.
    """
    from datasets import load_dataset, load_from_disk

    try:
        if path.is_dir():
            return load_from_disk(str(path))
        with hub_access(source, "dataset"):
            return load_dataset(source)
    except InputError:
        raise
    except Exception as error:  # of the hub, the network, the disk or the dataset's own files
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"{source} cannot be opened ({type(error).__name__}: {reason})") from error


def _from_dataset(config: ImageDataConfig, path: Path) -> ImageData:
    from datasets import ClassLabel, DatasetDict, Image

    loaded = open_dataset(config.source, path)
    if not isinstance(loaded, DatasetDict):
        raise InputError(f"{config.source} has one split: it must have one to train and one to validate on")
    splits = _splits_of(config.source, loaded, config.validation_split)
    rows: list[ImageRows] = []
    known: list[tuple[str, ...]] = []
    for split in splits:
        dataset = loaded[split]
        image = column_of(config.source, dataset, config.image_column, Image, "data.image_column")
        label = column_of(config.source, dataset, config.label_column, ClassLabel, "data.label_column")
        known.append(tuple(dataset.features[label].names))
        labels = np.asarray(dataset[label], dtype=np.int64)
        if len(labels) == 0 or labels.min() < 0:
            raise InputError(f"{config.source}: the split {split} has no images, or some without a class (-1)")
        encoded = dataset.cast_column(image, Image(decode=False))[image]
        rows.append(ImageRows([f"{split}[{row}]" for row in range(len(labels))], labels, encoded))
    if known[0] != known[1]:
        _same_classes(config.source, splits, [set(names) for names in known])
        raise InputError(f"{config.source}: the splits have their classes in another order")
    _two_classes(config.source, known[0])
    if missing := [name for number, name in enumerate(known[0]) if not (rows[0].labels == number).any()]:
        raise InputError(f"{config.source}: no image to train on of {', '.join(missing[:5])}")
    train_rows, test_rows = rows
    return ImageData(known[0], train_rows, test_rows)


def column_of(source: str, dataset: Any, wanted: str | None, kind: type, field: str) -> str:
    """Return the column of a dataset that is of a kind.

    Raises:
        InputError: there is none, or which is not clear.
    """
    fitting = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if wanted is not None and wanted in fitting:
        return wanted
    if wanted is None and len(fitting) == 1:
        return fitting[0]
    named = f"{wanted!r} is none" if wanted is not None else f"there are {len(fitting)}"
    raise InputError(
        f"{source}: {field} must name a column of {kind.__name__}, and {named}. Such are: "
        f"{', '.join(fitting) or 'none'}; all columns: {', '.join(dataset.features)}"
    )
