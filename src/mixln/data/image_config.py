"""Which images a run trains on, and how they are augmented. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from mixln.checked import Checked, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Range
from mixln.errors import InputError

Probability = Annotated[float, Range(low=0, high=1)]


@dataclass(frozen=True)
class ImageDataConfig(Checked):
    """The images of a run.

    Attributes:
        source: A folder, a tar archive, or a dataset on the hub. A folder or an archive has {train,test}/CLASS/FILE
            (also val or validation for test). A folder can also be one that `datasets` has saved.
        image_column: The column of images of a dataset. Default: the only one.
        label_column: The column of classes of a dataset. Default: the only one.
        validation_split: The split to validate on, where val, valid and validation are one name. Default: test or
            validation, whichever there is.
        workers: Processes that decode and augment images.
    """

    checked_path: ClassVar[str] = "data."

    source: str
    image_column: str | None = None
    label_column: str | None = None
    validation_split: str | None = None
    workers: PositiveInt = 2

    def __post_init__(self) -> None:
        """Raise InputError if there is no source."""
        super().__post_init__()
        if not self.source:
            raise InputError("data.source: give a folder, a tar archive, or the name of a dataset with images")


@dataclass(frozen=True)
class AugmentationConfig(Checked):
    """How images are cropped, changed and mixed while training. The defaults are light, for small images.

    Attributes:
        crop: With pad, an image of the right size is cropped from one with a border of an eighth of it. With resized, a
            part of 8 to 100 % of the image is resized (timm's training transform). With none, the image is resized.
        flip: The probability that an image is mirrored.
        auto_augment: timm's name of a policy, such as rand-m9-mstd0.5-inc1. Default: none. It goes with crop resized.
        color_jitter: The strength of timm's colour jitter. A policy takes its place. It goes with crop resized.
        erasing: The probability that a rectangle is erased (random erasing).
        mixup: The alpha of mixup. With 0 there is none.
        cutmix: The alpha of cutmix. With 0 there is none.
        label_smoothing: The part of each target that is spread over all classes.
        crop_fraction: The part of a test image that is seen: it is resized to 1 / crop_fraction, and cut in its middle.
        mean: The mean of each channel that is taken off.
        std: The standard deviation of each channel that it is divided by.
    """

    checked_path: ClassVar[str] = "augmentation."

    crop: Literal["pad", "resized", "none"] = "pad"
    flip: Probability = 0.5
    auto_augment: str | None = None
    color_jitter: NonNegativeFloat = 0.0
    erasing: Probability = 0.0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    label_smoothing: Fraction = 0.0
    crop_fraction: Annotated[float, Range(above=0, high=1)] = 1.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        """Raise InputError if values do not go together."""
        super().__post_init__()
        if self.crop != "resized" and (self.auto_augment or self.color_jitter):
            raise InputError("augmentation.auto_augment and color_jitter go with augmentation.crop resized")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise InputError("augmentation.mean and std are of the three channels red, green and blue")

    @property
    def mixes(self) -> bool:
        """Whether two images are made one."""
        return self.mixup > 0 or self.cutmix > 0
