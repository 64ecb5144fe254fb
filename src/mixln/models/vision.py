"""What encoders of images share: the fields of their configs, and the classifier."""

# no `from __future__ import annotations`: strict dataclasses do not check fields whose annotations are strings

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from mixln.models.encoder import PlacedEncoder, PlacedEncoderLayer
from mixln.models.placed import PlacedConfig
from mixln.models.stack import PlacedWithHead
from mixln.placement import ArchitectureNorm, ParameterRole, StackPlan

VISION_ROLES: Mapping[str, ParameterRole] = {
    "embeddings.patch_embeddings.projection.weight": "patch_embedding",
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "position_embedding",
    "layers.*.attention.q_proj.weight": "query",
    "layers.*.attention.k_proj.weight": "key",
    "layers.*.attention.v_proj.weight": "value",
    "layers.*.attention.o_proj.weight": "attention_output",
    "layers.*.mlp.fc1.weight": "up",
    "layers.*.mlp.fc2.weight": "down",
    "pooler.dense.weight": "head",
    "classifier.weight": "head",
}
"""The roles of the matrices of ViT with any head, and of all that is named like it."""


@dataclass(kw_only=True)
class PlacedVisionConfig(PlacedConfig):
    """The fields that a config of images has beside those of its architecture and of `PlacedConfig`.

    Attributes:
        pooling: what the classifier reads: `class_token`, or `mean`, the mean of the patches behind the final norm.
        drop_path_rate: probability with which the last block drops each of its branches while it trains; it rises in
            equal steps from 0 at the first (stochastic depth, Huang et al. 2016).
        layer_scale_init_value: initial value of a learned scale of each channel at the end of each branch (LayerScale,
            Touvron et al. 2021); None: there is none.
    """

    norm_eps_name: ClassVar[str | None] = "layer_norm_eps"
    recipe_names: ClassVar[Mapping[str, str | None]] = dict.fromkeys(
        (
            *("vocab_size", "max_position_embeddings", "num_key_value_heads", "rope_theta", "tie_word_embeddings"),
            *("bos_token_id", "eos_token_id", "pad_token_id"),
        )
    )

    pooling: Literal["class_token", "mean"] = "class_token"
    drop_path_rate: int | float = 0.0
    layer_scale_init_value: int | float | None = None

    def validate_patches(self) -> None:
        """Check that patches divide the image."""
        image, patch = _pair(self.image_size), _pair(self.patch_size)
        if min(*image, *patch) < 1 or any(size % part for size, part in zip(image, patch, strict=True)):
            raise ValueError(f"patches of {_times(patch)} pixels do not divide an image of {_times(image)}")

    def validate_drop_path_rate(self) -> None:
        """Check that the last block keeps some branches."""
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be at least 0 and below 1, not {self.drop_path_rate}")

    def norm_factory(self) -> ArchitectureNorm:
        """LayerNorm with gain and bias."""
        eps = float(self.layer_norm_eps)
        return ArchitectureNorm(
            lambda width: nn.LayerNorm(width, eps=eps), self.hidden_size, eps=eps, centered=True, has_bias=True
        )

    @property
    def stack_plan(self) -> StackPlan:
        """The plan of this model's stack; the classifier has its bias under every placement."""
        return replace(super().stack_plan, head_bias=False)

    @property
    def embedding_fans(self) -> tuple[int, int]:
        """What a patch has of values, and the hidden size."""
        patch = _pair(self.patch_size)
        return self.num_channels * patch[0] * patch[1], self.hidden_size

    @property
    def beyond_stock(self) -> str | None:
        """The mean of the patches, which transformers' own classifier does not read."""
        return "its classifier reads the mean of the patches" if self.pooling == "mean" else None

    @property
    def is_stock(self) -> bool:
        """Whether transformers' own class computes the same function of the same weights: it has no LayerScale."""
        return super().is_stock and self.layer_scale_init_value is None


class PlacedVisionLayer(PlacedEncoderLayer):
    """One block, whose norms in Pre-LN are called as in ViT."""

    norm_names: ClassVar[Mapping[tuple[str, str], str]] = {
        ("attention", "input_norm"): "layernorm_before",
        ("feed_forward", "input_norm"): "layernorm_after",
    }


class PlacedVisionModel(PlacedEncoder):
    """The stack of an encoder of images. Mixed in before an architecture's own model."""

    layer_base = PlacedVisionLayer
    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = VISION_ROLES

    def forward(self, pixel_values: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Run the stack as the architecture's own forward does, on images of (batch, channels, height, width).

        Images of another size than the config's need `interpolate_pos_encoding=True`.

        Raises:
            ValueError: there are no images, or patches do not divide them: their border would be left out.
        """
        if pixel_values is None:
            raise ValueError("give pixel_values, images of (batch, channels, height, width)")
        config: Any = self.config
        size, patch = tuple(pixel_values.shape[-2:]), _pair(config.patch_size)
        if size[0] % patch[0] or size[1] % patch[1]:
            raise ValueError(
                f"patches of {_times(patch)} pixels do not divide images of {_times(size)}: crop or resize them"
            )
        return super().forward(pixel_values, *args, **kwargs)


class PlacedForImageClassification(PlacedWithHead):
    """The classifier of images. Mixed in before an architecture's own."""

    new_head = frozenset({"classifier.weight", "classifier.bias"})

    def __init__(self, config: PlacedConfig) -> None:
        # not the architecture's constructor, which would build a stock stack to be thrown away
        PreTrainedModel.__init__(self, config)
        fields: Any = config
        self.num_labels = fields.num_labels
        build: Any = self.model_class
        self.add_module(self.base_model_prefix, build(config, add_pooling_layer=False))
        self.classifier = build_classifier(config)
        self.post_init()

    def forward(self, pixel_values: Any = None, labels: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Return the logits (batch, classes) and, given `labels` (batch,), the loss, as the architecture's own does."""
        fields: Any = self.config
        if fields.pooling == "class_token":
            return super().forward(pixel_values, labels, *args, **kwargs)
        if args:
            raise TypeError("give all but pixel_values and labels by name")
        stack = self.get_submodule(self.base_model_prefix)
        outputs = stack(pixel_values, **kwargs)
        patches = outputs.last_hidden_state[:, _leading_tokens(stack) :]
        logits = self.classifier(patches.mean(1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def build_classifier(config: Any) -> nn.Module:
    """Return the matrix and bias of a classifier; the identity if there are no classes."""
    return nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()


def _leading_tokens(stack: nn.Module) -> int:
    """Return how many tokens stand before the patches."""
    embeddings: Any = stack.get_submodule("embeddings")
    return embeddings.position_embeddings.shape[1] - embeddings.patch_embeddings.num_patches


def _pair(size: Any) -> tuple[int, int]:
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def _times(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
