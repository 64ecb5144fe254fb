"""How many parameters a recipe's model has, and where."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from mixln.placement import PlacedBlock
from mixln.tasks.recipe import Recipe
from mixln.tasks.stability import recipe_config


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, tied ones once.

    Attributes:
        total: all.
        embedding: of the input embedding; of a ViT, what is added to its patches.
        head: of the language-model head, 0 if it shares the embedding's weights; or of the classifier.
        blocks: of each block.
        other: the rest: the final norm, a norm on the embedding, a bias of the head; the matrix of patches.
    """

    total: int
    embedding: int
    head: int
    blocks: tuple[int, ...]
    other: int

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: all but those of an input embedding, which is looked up."""
        return self.total - self.embedding if self.head else self.total

    @property
    def in_blocks(self) -> int:
        """Parameters of all blocks."""
        return sum(self.blocks)


def count_parameters(recipe: Recipe) -> ParameterCount:
    """Count the parameters of a recipe's model, exactly: it is built, on the meta device, where nothing is allocated.

    Raises:
        PlacementError, InputError: the model cannot be built.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(recipe_config(recipe))
    embedding, head = _weight(model.get_input_embeddings()), _weight(model.get_output_embeddings())
    blocks = count_blocks(model)
    total = _count(model)
    own_head = 0 if head is embedding else head.numel()
    return ParameterCount(
        total=total,
        embedding=embedding.numel(),
        head=own_head,
        blocks=blocks,
        other=total - embedding.numel() - own_head - sum(blocks),
    )


def count_blocks(model: nn.Module) -> tuple[int, ...]:
    """Return the parameters of each block."""
    return tuple(_count(block) for block in model.modules() if isinstance(block, PlacedBlock))


def _weight(module: nn.Module) -> nn.Parameter:
    return module.get_parameter("weight")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
