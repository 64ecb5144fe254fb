"""Removing the norms of a trained model while it trains on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.models import PlacedConfig, PlacedPreTrainedModel, language_models
from mixln.models.apply import apply_placement
from mixln.models.decoder import PlacedForCausalLM
from mixln.placement import Placement, StackPlan
from mixln.tasks.fine_tuning import FineTuning
from mixln.tasks.norm_removal.config import SpikePolicy
from mixln.tasks.norm_removal.fold import fold_norms_in_place
from mixln.tasks.norm_removal.frozen_norm import ORDINARY, FrozenScaleNorm
from mixln.tasks.norm_removal.install import check_norms_removable, find_frozen_norms, install_frozen_norms
from mixln.tasks.norm_removal.removal import RemovalCallback
from mixln.tasks.norm_removal.schedule import RemovalSchedule
from mixln.tasks.objective import CausalLanguageModelObjective
from mixln.tasks.recipe import TextTrainingConfig
from mixln.training import Callback

_FOLDED_ROWS, _FOLDED_TOKENS = 2, 128
"""Of validation text: logits on it are compared before and after folding."""


class NormRemoval(FineTuning):
    """Next-token prediction by a model that loses its norms in training, one after the other.

    A model of transformers' own classes becomes one of this library's, which computes the same. The result has what
    `FoldReport` says, `made` (the steps before which the removals were made), `waited_steps` and `num_roll_backs`.

    Args:
        folder: what `save_pretrained` wrote, of a causal language model, with its tokenizer.
        config: of the run.
        data: to train and validate on.
        schedule: when what goes.
        num_layers: of the model.
        policy: on spikes.
        auxiliary_weight: of the auxiliary loss, see `add_auxiliary_loss`; 0: none.

    Raises:
        InputError: as `FineTuning`; or the model is to be sharded.
    """

    def __init__(
        self,
        folder: str | Path,
        config: TextTrainingConfig,
        data: PreparedData,
        schedule: RemovalSchedule,
        num_layers: int,
        policy: SpikePolicy,
        *,
        auxiliary_weight: float = 0.0,
    ) -> None:
        if config.execution.strategy == "fsdp":
            raise InputError("norms are folded in whole models: use execution.strategy ddp, without tensor parallelism")
        super().__init__(folder, config, data)
        self._schedule, self._policy = schedule, policy
        self._removals = schedule.removals(num_layers)
        self._auxiliary_weight = auxiliary_weight

    def identity(self) -> dict[str, Any]:
        """The folder's content, the data, and what is done to the model."""
        removal = {**asdict(self._schedule), "auxiliary_weight": self._auxiliary_weight}
        return {**super().identity(), "norm_removal": removal}

    def callbacks(self) -> list[Callback]:
        """What removes the norms."""
        return [RemovalCallback(self._removals, self._schedule.first_step, self._policy)]

    def build(self) -> PlacedPreTrainedModel:
        """Open the folder, and put frozen-scale norms in place of the model's own; nothing is frozen yet.

        Raises:
            InputError: as `FineTuning.build`, or the model's norms cannot be removed.
        """
        model: Any = super().build()
        check_norms_removable(*removable_plan(model.config))
        if not isinstance(model, PlacedPreTrainedModel):
            model, _ = apply_placement(model, _family(model.config).stock_placement)
        assert isinstance(model, PlacedPreTrainedModel)
        end_of_text = self.data.tokenizer.eos_token_id
        install_frozen_norms(model, end_of_text if isinstance(end_of_text, int) else None)
        return model

    def objective(
        self, model: PreTrainedModel, device: torch.device, *, compiled: bool
    ) -> CausalLanguageModelObjective:
        """The next-token loss, and the auxiliary loss while it trains."""
        objective = super().objective(model, device, compiled=compiled)
        final = find_frozen_norms(model).norms.get(("final", None))
        if final is not None and self._auxiliary_weight:
            add_auxiliary_loss(objective, final, self._auxiliary_weight)
        return objective

    def finish(self, objective: CausalLanguageModelObjective) -> dict[str, Any]:
        """Make it a model without norms."""
        model = objective.model.eval()
        assert isinstance(model, PlacedForCausalLM)
        # on text: with tokens that were never trained on, logits without norms can be of any size
        rows = self.data.validation
        tokens = rows.batch(range(min(_FOLDED_ROWS, len(rows)))).input_ids[:, :_FOLDED_TOKENS].to(model.device)
        objective.model, report = fold_norms_in_place(model, find_frozen_norms(model), tokens)
        super().finish(objective)
        return asdict(report)


def removable_plan(config: PreTrainedConfig) -> tuple[StackPlan, str]:
    """Return the plan of a model's stack, and the text of its placement; stock models have their architecture's.

    Raises:
        InputError: it is of no architecture that norms can be removed from, or its norms are neutralised already.
    """
    family = type(config) if isinstance(config, PlacedConfig) else _family(config)
    eps = getattr(config, family.norm_eps_name or "", 0.0)
    if eps >= 1:
        raise InputError(
            f"the norms of this {config.model_type} do nothing: their eps of {eps:.3g} makes them neutral, which "
            "an export "
            "does for classes that cannot be without norms. There is nothing to remove"
        )
    if isinstance(config, PlacedConfig):
        return config.stack_plan, config.placement
    placement = family.stock_placement
    return Placement.parse(placement).plan(int(config.num_hidden_layers)), placement


def _family(config: PreTrainedConfig) -> type[PlacedConfig]:
    families = {one.stock_model_type: one.config_class for one in language_models().values()}
    if config.model_type not in families:
        raise InputError(
            f"norms can be removed from language models of {', '.join(sorted(families))}; this is a {config.model_type}"
        )
    return families[config.model_type]


def add_auxiliary_loss(objective: nn.Module, norm: FrozenScaleNorm, weight: float) -> None:
    """Add to a summed training loss what keeps the std before the final norm equal over tokens.

        weight * sum over tokens of (std - stopgrad(mean of std over ordinary tokens))^2

    which, as the loss itself, is divided by the number of predicted tokens (LN-free, section on the auxiliary loss).

    Args:
        objective: maps a batch to its loss, summed over tokens, by way of `norm`.
        norm: the model's last.
        weight: see above.
    """

    norm.keeps_std = True

    def add(module: nn.Module, _arguments: tuple[Any, ...], loss: Tensor) -> Tensor | None:
        std, ids = norm.own_std, norm.classes.ids
        norm.own_std = None
        if not module.training:
            return None
        assert std is not None
        assert ids is not None
        ordinary = (ids == ORDINARY).to(std.dtype)
        target = ((std * ordinary).sum() / ordinary.sum().clamp(min=1)).detach()
        extra = weight * (std - target).square().sum()
        # the gradient is what counts: the value stays the next-token loss, which metrics and spikes are about
        return loss + extra - extra.detach()

    objective.register_forward_hook(add)
