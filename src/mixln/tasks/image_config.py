"""The configuration of training a classifier of images. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from mixln.checked import Checked, Fraction, PositiveFloat, PositiveInt, Range
from mixln.data.image_config import AugmentationConfig, ImageDataConfig
from mixln.errors import InputError
from mixln.training.config import TrainingConfig


@dataclass(frozen=True)
class VisionModelConfig(Checked):
    """A ViT that is trained from its initial weights; the classes come from the data.

    Attributes:
        placement: Where the norms are, such as mix(alpha=0.25). `mixln schemes` lists what there is.
        image_size: The height and width of an image.
        patch_size: The height and width of a patch. It must divide image_size.
        hidden_size: The width of the residual stream.
        intermediate_size: The width of the feed-forward's inner layer.
        num_hidden_layers: The number of blocks.
        num_attention_heads: The number of attention heads. It must divide hidden_size.
        pooling: What the classifier reads: the class token, or the mean of the patches.
        drop_path_rate: The probability with which the last block drops each of its branches.
        layer_scale_init_value: The initial value of a learned scale at the end of each branch. Default: none.
        layer_norm_eps: The epsilon of the norms.
        initializer_range: The standard deviation of the initial weights where the placement has no rule of its own.
        embedding_std: The standard deviation of the patches' initial matrix. Default: the placement's rule.
    """

    checked_path: ClassVar[str] = "model."

    placement: str = "pre"
    image_size: PositiveInt = 32
    patch_size: PositiveInt = 4
    hidden_size: PositiveInt = 128
    intermediate_size: PositiveInt = 512
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 4
    pooling: Literal["class_token", "mean"] = "class_token"
    drop_path_rate: Fraction = 0.0
    layer_scale_init_value: PositiveFloat | None = None
    layer_norm_eps: PositiveFloat = 1e-6
    initializer_range: PositiveFloat = 0.02
    embedding_std: PositiveFloat | None = None

    @property
    def positions(self) -> int:
        """Tokens of an image: its patches, and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class ImageTrainingConfig(TrainingConfig):
    """Everything that decides what training a classifier of images computes, and how; see `TrainingConfig`.

    Attributes:
        data: The images.
        augmentation: How they are changed while training.
        model: The model.
        ema_decay: The decay of an exponential moving average of the weights, such as 0.999. It is evaluated beside
            them, and saved in model_ema. Default: no average.
    """

    data: ImageDataConfig
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: VisionModelConfig = field(default_factory=VisionModelConfig)
    ema_decay: Annotated[float, Range(above=0, below=1)] | None = None

    def __post_init__(self) -> None:
        """Raise InputError if values do not go together."""
        super().__post_init__()
        if self.augmentation.mixes and self.batch_size % 2:
            raise InputError(f"mixup and cutmix mix pairs: batch_size must be even, not {self.batch_size}")
