"""Processes that decode, augment and mix images; what each makes is a function of (seed, step, row).

The libraries that augment (timm, torchvision) draw from the global generators of Python, NumPy and PyTorch. So they run
in processes of their own, which seed all three before each image, and the generators of training are left alone.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import random
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mixln.data.image_config import AugmentationConfig
from mixln.data.images import Encoded
from mixln.data.worker_processes import end_with_parent, interrupts_held_back
from mixln.errors import InputError

_Result = TypeVar("_Result")

_tools: Any = None
"""Of a worker process."""


class Item(NamedTuple):
    """An image that is to be made.

    Attributes:
        row: its number in the split.
        name: of it, for messages.
        encoded: the image.
        label: its class.
    """

    row: int
    name: str
    encoded: Encoded
    label: int


Made = tuple[np.ndarray, np.ndarray]
"""Images (count, 3, height, width) and targets (count, classes), float32."""


class ImageWorkers:
    """A pool of processes; they end with this one, or with `close`.

    Args:
        workers: how many.
        size: (height, width) of what is made.
        augmentation: of training images.
        classes: the number of classes.
    """

    def __init__(self, workers: int, size: tuple[int, int], augmentation: AugmentationConfig, classes: int) -> None:
        # spawned: threads of the libraries do not survive a fork
        context = multiprocessing.get_context("spawn")
        self._count = workers
        self._pool = ProcessPoolExecutor(workers, context, _begin, (size, augmentation, classes))

    def training(self, seed: int, step: int, pairs: Sequence[tuple[Item, Item]] | Sequence[Item]) -> Made:
        """Return training images in the order of items; of pairs that are mixed, all firsts, then all seconds.

        Raises:
            InputError: an image cannot be decoded; or a process was killed.
        """
        parts = [pairs[first :: self._count] for first in range(self._count)]
        futures = [self._submit(_make_training, seed, step, part) for part in parts if len(part)]
        made = [result_of(future) for future in futures]
        return _in_order(made, len(pairs), self._count)

    def testing(self, items: Sequence[Item]) -> Future[Made]:
        """Begin to make images that are only resized and cut in their middle, with one class each."""
        return self._submit(_make_testing, items)

    def inspect(self, items: Sequence[Item], tick: Callable[[int], None] | None = None) -> list[tuple[str, str]]:
        """Decode images, and return for each its mode (`RGB`, `L`, `CMYK` ...) or "", and what is wrong with it or "".

        Args:
            items: the images.
            tick: told now and then how many are done.

        Raises:
            InputError: a process was killed.
        """
        size = 256
        futures = [self._submit(_inspect, items[first : first + size]) for first in range(0, len(items), size)]
        found: list[tuple[str, str]] = []
        for future in futures:
            found += result_of(future)
            if tick is not None:
                tick(len(found))
        return found

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, function: Any, *arguments: Any) -> Future[Any]:
        try:
            with interrupts_held_back():
                return self._pool.submit(function, *arguments)
        except BrokenProcessPool as error:
            raise _killed(error) from error


def result_of(future: Future[_Result]) -> _Result:
    """Return what a worker has made.

    Raises:
        InputError: an image cannot be decoded; or the process was killed.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _killed(error) from error


def _killed(error: BaseException) -> InputError:
    return InputError(
        f"a process that decodes images was killed, or could not begin, perhaps for lack of memory ({error}). Run "
        "again with fewer data.workers, and the run goes on. A Python script needs the guard "
        '`if __name__ == "__main__":`'
    )


def _in_order(made: Sequence[Made], count: int, workers: int) -> Made:
    """Put together what was dealt out: item i went to part i % workers; of pairs, the seconds follow the firsts."""
    halves = sum(len(images) for images, _ in made) // max(count, 1)
    images = np.empty((halves * count, *made[0][0].shape[1:]), np.float32)
    targets = np.empty((halves * count, made[0][1].shape[1]), np.float32)
    for first, (own_images, own_targets) in enumerate(made):
        for half in range(halves):
            size = len(own_images) // halves
            places = slice(half * count + first, (half + 1) * count, workers)
            images[places] = own_images[half * size : (half + 1) * size]
            targets[places] = own_targets[half * size : (half + 1) * size]
    return images, targets


class _Tools:
    def __init__(self, size: tuple[int, int], augmentation: AugmentationConfig, classes: int) -> None:
        import torch
        from timm.data.mixup import Mixup
        from timm.data.transforms_factory import create_transform

        torch.set_num_threads(1)
        _let_posterize_take_all_bits()
        self.classes, self.smoothing = classes, augmentation.label_smoothing
        colours: dict[str, Any] = {"mean": augmentation.mean, "std": augmentation.std}
        shape = (3, *size)
        self.testing: Any = create_transform(
            shape, is_training=False, interpolation="bicubic", crop_pct=augmentation.crop_fraction, **colours
        )
        if augmentation.crop == "resized":
            self.training: Any = create_transform(
                shape,
                is_training=True,
                hflip=augmentation.flip,
                color_jitter=augmentation.color_jitter,
                auto_augment=augmentation.auto_augment,
                interpolation="bicubic",
                re_prob=augmentation.erasing,
                re_mode="pixel",
                **colours,
            )
        else:
            self.training = _light(size, augmentation)
        self.mixing: Any = None
        if augmentation.mixes:
            self.mixing = Mixup(
                mixup_alpha=augmentation.mixup,
                cutmix_alpha=augmentation.cutmix,
                label_smoothing=augmentation.label_smoothing,
                num_classes=classes,
            )


def _let_posterize_take_all_bits() -> None:
    """Make an image black where timm's policies keep 0 of its bits, as Pillow did before it refused that (13.0)."""
    from PIL import Image
    from timm.data import auto_augment

    def posterize(image: Any, bits_to_keep: int, **options: Any) -> Any:
        if bits_to_keep < 1:
            return Image.new(image.mode, image.size)
        return auto_augment.posterize(image, bits_to_keep, **options)

    for name in [name for name in auto_augment.NAME_TO_OP if name.startswith("Posterize")]:
        auto_augment.NAME_TO_OP[name] = posterize


def _light(size: tuple[int, int], augmentation: AugmentationConfig) -> Any:
    import torch
    from torchvision.transforms import v2

    steps: list[Any] = [v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC)]
    if augmentation.crop == "pad":
        steps.append(v2.RandomCrop(size, padding=[size[1] // 8, size[0] // 8]))
    steps += [v2.RandomHorizontalFlip(augmentation.flip), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps += [v2.Normalize(list(augmentation.mean), list(augmentation.std)), v2.RandomErasing(augmentation.erasing)]
    return v2.Compose(steps)


def _begin(size: tuple[int, int], augmentation: AugmentationConfig, classes: int) -> None:
    global _tools
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _tools = _Tools(size, augmentation, classes)


def _make_training(seed: int, step: int, items: Sequence[Any]) -> Made:
    import torch

    if not isinstance(items[0], Item):
        # the batch is mixed with itself turned round: so each pair's second stands where its first does from the end
        ordered = [pair[0] for pair in items] + [pair[1] for pair in items][::-1]
        images = torch.stack([_augmented(seed, step, item) for item in ordered])
        _seed(seed, step, "mixing")
        images, targets = _tools.mixing(images, torch.tensor([item.label for item in ordered]))
        half = len(items)
        order = [*range(half), *range(2 * half - 1, half - 1, -1)]
        return images[order].numpy(), targets[order].float().numpy()
    images = torch.stack([_augmented(seed, step, item) for item in items])
    return images.numpy(), _smoothed(items, _tools.smoothing)


def _augmented(seed: int, step: int, item: Item) -> Any:
    image = _decode(item)
    _seed(seed, step, item.row)
    try:
        return _tools.training(image)
    except Exception as error:  # of the libraries that augment
        raise InputError(f"the image {item.name} cannot be augmented ({type(error).__name__}: {error})") from error


def _make_testing(items: Sequence[Item]) -> Made:
    import torch

    return torch.stack([_tools.testing(_decode(item)) for item in items]).numpy(), _smoothed(items, 0.0)


def _smoothed(items: Sequence[Item], smoothing: float) -> np.ndarray:
    targets = np.full((len(items), _tools.classes), smoothing / _tools.classes, np.float32)
    targets[np.arange(len(items)), [item.label for item in items]] += 1 - smoothing
    return targets


def _inspect(items: Sequence[Item]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for item in items:
        try:
            found.append((open_image(item.encoded).mode, ""))
        except Exception as error:  # damaged files raise errors of every kind
            found.append(("", f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"))
    return found


def open_image(encoded: Encoded) -> Any:
    """Return an image of PIL, decoded; damaged ones raise errors of every kind.

    Args:
        encoded: the path of its file, or what is in it.
    """
    from PIL import Image

    image = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
    image.load()
    return image


def _decode(item: Item) -> Any:
    try:
        return open_image(item.encoded).convert("RGB")
    except Exception as error:
        raise InputError(f"the image {item.name} cannot be decoded ({type(error).__name__}: {error})") from error


def _seed(*parts: object) -> None:
    import torch

    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number >> 1)
