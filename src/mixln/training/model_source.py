"""Where the model of a run comes from, and what becomes of it in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mixln.models import PlacedPreTrainedModel
from mixln.placement import has_residual_scales_to_profile, profile_residual_scales, set_residual_scales
from mixln.training.build import materialize, model_without_weights
from mixln.training.config import Recipe
from mixln.training.intervention import Intervention
from mixln.training.objective import AttentionKind, CausalLanguageModelObjective
from mixln.training.stability import stability_warnings


class ModelSource(Protocol):
    """Where the model of a run comes from: drawn by the recipe (`FreshModel`), or trained already.

    In the order in which a run calls them; all processes do.
    """

    @property
    def intervention(self) -> Intervention:
        """What is done to the model between the steps."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what `recipe.json` says instead of the recipe's own fields; it may not change on resuming."""
        ...

    def warnings(self) -> list[str]:
        """Return a sentence for everything about model and recipe that its owner should know."""
        ...

    def build(self) -> PreTrainedModel:
        """Return the model, on the meta device or the CPU, to be shared out among processes.

        Raises:
            InputError: it cannot be built or opened, or does not fit the recipe.
        """
        ...

    def wrap(self, model: PreTrainedModel, attention: AttentionKind) -> CausalLanguageModelObjective:
        """Return what is to be minimised for a model that `build` gave, or one that was saved at the end of a run."""
        ...

    def place(self, model: PreTrainedModel, device: torch.device) -> None:
        """Give a built model, shared out or not, its memory on the device and its initial weights; for training."""
        ...

    def restart(self, model: PreTrainedModel) -> None:
        """Give a placed model its initial weights again."""
        ...

    def profile(
        self, model: PreTrainedModel, forward: Callable[[], object], reduce: Callable[[Tensor], Tensor]
    ) -> None:
        """Set what one forward pass over real data decides, before the first step.

        Args:
            model: with its initial weights, shared out or not.
            forward: runs it once in training mode, on the first batch, without gradients.
            reduce: adds up a tensor over the processes that have a share of that batch.
        """
        ...

    def finish(self, model: PreTrainedModel) -> None:
        """Make a trained model, in place, what is to be saved."""
        ...


class FreshModel:
    """The recipe's own model, its weights drawn by (seed, parameter name).

    Args:
        recipe: of the run.
        tokenizer: whose tokens it predicts.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self.intervention = Intervention()

    def describe(self) -> dict[str, Any]:
        """Nothing: the recipe says it all."""
        return {}

    def warnings(self) -> list[str]:
        """What of the recipe is outside the range that is known to be stable."""
        return stability_warnings(self._recipe)

    def build(self) -> PreTrainedModel:
        """The model on the meta device, so that no process ever holds more than its part."""
        return model_without_weights(self._recipe, self._tokenizer)

    def wrap(self, model: PreTrainedModel, attention: AttentionKind) -> CausalLanguageModelObjective:
        """The next-token loss."""
        return CausalLanguageModelObjective(model, attention)

    def place(self, model: PreTrainedModel, device: torch.device) -> None:
        """Draw this process's part."""
        materialize(_placed(model), self._recipe.seed, device)

    def restart(self, model: PreTrainedModel) -> None:
        """Draw the same weights again."""
        _placed(model).initialize(self._recipe.seed)

    def profile(
        self, model: PreTrainedModel, forward: Callable[[], object], reduce: Callable[[Tensor], Tensor]
    ) -> None:
        """Set the residual scales that are learned, if the placement has such (Admin)."""
        if has_residual_scales_to_profile(model):
            set_residual_scales(model, profile_residual_scales(model, forward, reduce=reduce))

    def finish(self, model: PreTrainedModel) -> None:
        """It is saved as it is."""


def _placed(model: PreTrainedModel) -> PlacedPreTrainedModel:
    assert isinstance(model, PlacedPreTrainedModel)
    return model
