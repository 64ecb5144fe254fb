"""DeiT under any placement: ViT with a second token, for distillation."""

from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    PreTrainedModel,
)

from mixln.models.registry import register_architecture
from mixln.models.stack import PlacedWithHead
from mixln.models.vision import (
    VISION_ROLES,
    PlacedForImageClassification,
    PlacedVisionConfig,
    PlacedVisionModel,
    build_classifier,
)
from mixln.placement import ParameterRole


@strict
class MixLNDeiTConfig(PlacedVisionConfig, DeiTConfig):
    """`transformers.DeiTConfig` with a placement; see `PlacedVisionConfig` for the fields it adds, what it raises."""

    model_type = "mixln_deit"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.architectures is None:
            # the Auto classes look through it where there are two classes to choose from, and fail at None
            self.architectures = [MixLNDeiTForImageClassification.__name__]


class MixLNDeiTModel(PlacedVisionModel, DeiTModel):
    """The stack without the head: `transformers.DeiTModel` with placed blocks."""

    config_class = MixLNDeiTConfig
    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = {
        **VISION_ROLES,
        "embeddings.distillation_token": "class_token",
        "cls_classifier.weight": "head",
        "distillation_classifier.weight": "head",
    }


class MixLNDeiTForImageClassification(PlacedForImageClassification, DeiTForImageClassification):
    """The classifier of images: `transformers.DeiTForImageClassification` on `MixLNDeiTModel`."""

    model_class = MixLNDeiTModel


class MixLNDeiTForImageClassificationWithTeacher(PlacedWithHead, DeiTForImageClassificationWithTeacher):
    """The distilled classifier: `transformers.DeiTForImageClassificationWithTeacher` on `MixLNDeiTModel`.

    Raises:
        ValueError: the config pools by the mean: this classifier reads the class token and the one for distillation.
    """

    model_class = MixLNDeiTModel
    new_head = frozenset(f"{kind}_classifier.{name}" for kind in ("cls", "distillation") for name in ("weight", "bias"))

    def __init__(self, config: MixLNDeiTConfig) -> None:
        # not the architecture's constructor, which would build a stock stack to be thrown away
        PreTrainedModel.__init__(self, config)
        if config.pooling != "class_token":
            raise ValueError(f"a distilled DeiT reads its two tokens, and the config says pooling={config.pooling!r}")
        self.num_labels = config.num_labels
        self.deit = MixLNDeiTModel(config, add_pooling_layer=False)
        self.cls_classifier, self.distillation_classifier = (build_classifier(config) for _ in range(2))
        self.post_init()


register_architecture("deit", MixLNDeiTForImageClassification, heads=[MixLNDeiTForImageClassificationWithTeacher])
