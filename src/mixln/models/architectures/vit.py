"""ViT under any placement: images in patches, a class token, learned positions, LayerNorm and biases everywhere."""

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from mixln.models.registry import register_architecture
from mixln.models.vision import PlacedForImageClassification, PlacedVisionConfig, PlacedVisionModel


@strict
class MixLNViTConfig(PlacedVisionConfig, ViTConfig):
    """`transformers.ViTConfig` with a placement; see `PlacedVisionConfig` for the fields it adds, what it raises."""

    model_type = "mixln_vit"


class MixLNViTModel(PlacedVisionModel, ViTModel):
    """The stack without the head: `transformers.ViTModel` with placed blocks."""

    config_class = MixLNViTConfig


class MixLNViTForImageClassification(PlacedForImageClassification, ViTForImageClassification):
    """The classifier of images: `transformers.ViTForImageClassification` on `MixLNViTModel`."""

    model_class = MixLNViTModel


register_architecture("vit", MixLNViTForImageClassification)
