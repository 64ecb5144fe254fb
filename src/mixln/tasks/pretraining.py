"""Pretraining: the recipe's own model, its weights drawn by (seed, parameter name)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mixln.data import PreparedData
from mixln.models import PlacedPreTrainedModel
from mixln.placement import has_residual_scales_to_profile, profile_residual_scales, set_residual_scales
from mixln.tasks.build import check_model, materialize, model_without_weights
from mixln.tasks.language_model import LanguageModelTask
from mixln.tasks.objective import CausalLanguageModelObjective, attention_of, choose_attention
from mixln.tasks.recipe import Recipe
from mixln.tasks.stability import stability_warnings
from mixln.training import Callback, Precision, ReportStep, TrainedModel, train
from mixln.training.objective import Reduce


class Pretraining(LanguageModelTask):
    """Next-token prediction by a model that is drawn anew.

    Args:
        config: the recipe.
        data: to train and validate on.

    Raises:
        PlacementError, InputError: the recipe's model cannot be built.
    """

    def __init__(self, config: Recipe, data: PreparedData) -> None:
        super().__init__(config, data)
        self.recipe = check_model(config)

    def identity(self) -> dict[str, Any]:
        """The model, and the data."""
        return {"model": asdict(self.recipe.model), **super().identity()}

    def warnings(self) -> list[str]:
        """What of the recipe is outside the range that is known to be stable."""
        return stability_warnings(self.recipe)

    def widths(self) -> tuple[int, int]:
        """Those of a feed-forward."""
        return self.recipe.model.hidden_size, self.recipe.model.intermediate_size

    def build(self) -> PlacedPreTrainedModel:
        """The model on the meta device, so that no process ever holds more than its part."""
        return model_without_weights(self.recipe, self.data.tokenizer)

    def objective(
        self, model: PlacedPreTrainedModel, device: torch.device, *, compiled: bool
    ) -> CausalLanguageModelObjective:
        """The next-token loss."""
        attention = choose_attention(device, self.positions, compiled=compiled)
        return CausalLanguageModelObjective(model, attention)

    def place(self, objective: CausalLanguageModelObjective, device: torch.device) -> None:
        """Draw this process's part."""
        materialize(objective.model, self.recipe.seed, device)

    def restart(self, objective: CausalLanguageModelObjective) -> None:
        """Draw the same weights again."""
        objective.model.initialize(self.recipe.seed)

    def adapt(self, objective: CausalLanguageModelObjective, forward: Callable[[], object], reduce: Reduce) -> None:
        """Set the residual scales that are learned, if the placement has such (Admin)."""
        model = objective.model
        if has_residual_scales_to_profile(model):
            with attention_of(objective, "sdpa"):
                scales = profile_residual_scales(model, forward, reduce=reduce)
            set_residual_scales(model, scales)


def pretrain(
    recipe: Recipe,
    data: PreparedData,
    folder: str | Path,
    report_step: ReportStep | None = None,
    *,
    precision: Precision | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainedModel:
    """Train a recipe's model; see `mixln.training.train`.

    Args:
        recipe: of the run.
        data: the prepared data of `recipe.data`.
        folder: of the run; its `model/` will be a Hugging Face folder with the tokenizer.
        report_step: progress.
        precision: as `train`.
        callbacks: as `train`.

    Raises:
        PlacementError, InputError: the recipe's model cannot be built; or as `train`.
        TrainingDivergedError, TrainingInterrupted: as `train`.
    """
    return train(Pretraining(recipe, data), folder, report_step, precision=precision, callbacks=callbacks)
