"""A trained model whose norms are removed while it trains on, as the model of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from mixln.errors import InputError
from mixln.models import ARCHITECTURES, PlacedConfig, PlacedPreTrainedModel
from mixln.models.apply import apply_placement
from mixln.models.decoder import PlacedForCausalLM
from mixln.normfree.frozen_norm import ORDINARY, FrozenScaleNorm
from mixln.normfree.install import FrozenNorms, check_removable, install_frozen_norms
from mixln.normfree.removal import RemovalIntervention
from mixln.placement import Placement, StackPlan
from mixln.posttraining.pretrained import PretrainedModel
from mixln.training import Recipe
from mixln.training.objective import AttentionKind, CausalLanguageModelObjective

Finish = Callable[[PlacedForCausalLM, FrozenNorms], None]
"""Makes of a model whose norms are all frozen, in place, one that has none."""


class NormRemoval(PretrainedModel):
    """A source of models (see `mixln.training.model_source.ModelSource`) that lose their norms in training.

    A model of transformers' own classes becomes one of this library's, which computes the same.

    Args:
        folder: what `save_pretrained` wrote, of a causal language model, with its tokenizer.
        recipe: of the run; its `model` plays no part.
        tokenizer: of the run's data.
        intervention: when what goes.
        schedule: what describes that in the run's `recipe.json`.
        auxiliary_weight: of the auxiliary loss, see `add_auxiliary_loss`; 0: none.
        finish: called in the end.

    Raises:
        InputError: as `PretrainedModel`; or the recipe would shard the model.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerFast,
        intervention: RemovalIntervention,
        schedule: dict[str, Any],
        *,
        auxiliary_weight: float = 0.0,
        finish: Finish,
    ) -> None:
        if recipe.execution.strategy == "fsdp" or recipe.execution.tensor_parallel_size > 1:
            raise InputError("norms are folded in whole models: use execution.strategy ddp, without tensor parallelism")
        super().__init__(folder, recipe, tokenizer)
        self.intervention = self._removal = intervention  # the same, of which the base class knows less
        self._end_of_text = tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else None
        self._schedule = schedule
        self._auxiliary_weight = auxiliary_weight
        self._finish = finish

    def describe(self) -> dict[str, Any]:
        """The folder's content, and what is done to it."""
        removal = {**self._schedule, "auxiliary_weight": self._auxiliary_weight}
        return {**super().describe(), "norm_removal": removal}

    def build(self) -> PreTrainedModel:
        """Open the folder, and put frozen-scale norms in place of the model's own; nothing is frozen yet.

        Raises:
            InputError: as `PretrainedModel.build`, or the model's norms cannot be removed.
        """
        model = super().build()
        check_removable(*removable_plan(model.config))
        if not isinstance(model, PlacedPreTrainedModel):
            apply_placement(model, _family(model.config).stock_placement)
        assert isinstance(model, PlacedPreTrainedModel)
        self._removal.norms = install_frozen_norms(model, self._end_of_text)
        return model

    def wrap(self, model: PreTrainedModel, attention: AttentionKind) -> CausalLanguageModelObjective:
        """The next-token loss, and the auxiliary loss while it trains."""
        objective = super().wrap(model, attention)
        finals = [one for one in model.modules() if isinstance(one, FrozenScaleNorm) and "final" in one.paths]
        if finals and self._auxiliary_weight:
            add_auxiliary_loss(objective, finals[0], self._auxiliary_weight)
        return objective

    def restart(self, model: PreTrainedModel) -> None:
        """Read the weights again; nothing is frozen then."""
        norms = self._removal.norms
        super().restart(model)  # which builds a model to read them from, with norms of its own
        self._removal.norms = norms

    def finish(self, model: PreTrainedModel) -> None:
        """Make it a model without norms.

        Raises:
            InputError: norms are left.
        """
        intervention, norms = self._removal, self._removal.norms
        if not intervention.is_complete:
            waited, backs = intervention.waited_steps, intervention.num_roll_backs
            why = [f"spikes held removals up in {waited} of them"] * bool(waited)
            why += [f"spikes took the run back {backs} times"] * bool(backs)
            raise InputError(
                f"the steps are over, and {len(intervention.made)} of {intervention.num_removals} removals are made: "
                f"{' and '.join(why) or 'they came too late'}. Start anew in another place with more steps, an earlier "
                "or slower schedule, a lower learning rate, or a higher threshold for spikes; metrics.jsonl and the "
                "checkpoints of this run are kept"
            )
        assert isinstance(model, PlacedForCausalLM)
        assert norms is not None
        self._finish(model.eval(), norms)
        super().finish(model)


def removable_plan(config: PreTrainedConfig) -> tuple[StackPlan, str]:
    """Return the plan of a model's stack, and the text of its placement; stock models have their architecture's.

    Raises:
        InputError: it is of no architecture that norms can be removed from, or its norms are neutralised already.
    """
    family = type(config) if isinstance(config, PlacedConfig) else _family(config)
    eps = getattr(config, family.recipe_names.get("rms_norm_eps", "rms_norm_eps") or "", 0.0)
    if eps >= 1:
        raise InputError(
            f"the norms of this {config.model_type} do nothing: their eps of {eps:.3g} is what norms are neutralised "
            "with where classes cannot do without. There is nothing to remove"
        )
    if isinstance(config, PlacedConfig):
        return config.stack_plan, config.placement
    placement = family.stock_placement
    return Placement.parse(placement).plan(int(config.num_hidden_layers)), placement


def _family(config: PreTrainedConfig) -> type[PlacedConfig]:
    families = {one.stock_model_type: one.config_class for one in ARCHITECTURES.values()}
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
