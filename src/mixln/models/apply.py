"""Giving a built or loaded model of transformers another placement."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mixln.models.graft import has_adapters, norm_sources, take_tensors
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.registry import ARCHITECTURES, Architecture
from mixln.models.transformers_internals import Conv1D, enable_activation_checkpointing, has_activation_checkpointing
from mixln.placement import (
    ActivationGate,
    Placement,
    PlacementError,
    Residual,
    StackPlan,
    SublayerPlan,
    list_modifiers,
    list_schemes,
)
from mixln.placement.departures import departures
from mixln.placement.plan import SUBLAYERS


@dataclass(frozen=True)
class PlacementChange:
    """What `apply_placement` did, or would do.

    Attributes:
        placement: text form of the new placement.
        keeps_function: whether the model computes what it computed before; if not, its weights need training. What the
            configs do not say (a forward or an eps that was changed by hand, hooks) is not looked at.
        differences: in words, the parts of the formula that differ, with their layers.
        added: names of new parameters, which have their initial values.
        removed: names of parameters that the new model lacks.
    """

    placement: str
    keeps_function: bool
    differences: tuple[str, ...]
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __str__(self) -> str:
        verdict = "keeps the model's function" if self.keeps_function else "changes the function: train it"
        return "; ".join((f"{self.placement} {verdict}", *self.differences))


def apply_placement(
    model: PreTrainedModel, placement: str, *, seed: int | None = None
) -> tuple[PlacedPreTrainedModel, PlacementChange]:
    """Return a model whose norms stand where a placement wants them, made of the parameters of another.

    The new model is of this library's classes, so that what anybody saves of it reloads with its placement. It shares
    its parameters with the given one (an optimiser that holds them keeps them), which stays what it is. Norms that
    stand where they stood keep their weights; new ones, gates and learned scales are at their initial values. Hooks are
    not taken over: put them on afterwards, as adapters.

    The new model has no `name_or_path`: other libraries open what that names to have the model once more (TRL its
    reference, PEFT the base of an adapter), and it names a model of another placement. Save the new one and open it.

    Args:
        model: a stock model of a supported family, with a head that is supported or without, or one of this library.
        placement: text form, as `mix(alpha=0.25)`.
        seed: draws all weights anew by the placement's rules of initialisation, for a model to be trained from scratch
            (those that the given model shares too); None: keeps the weights.

    Returns:
        The model, in the given one's mode; and whether the function was kept, and what changed.

    Raises:
        PlacementError: the model is of no supported family, spread over devices, quantised or has adapters; or there is
            no such placement, or it does not fit.
    """
    found = placeable_architecture(model)
    config = placed_config(found, model, placement)
    change = _describe_change(_plan_of(found, model), config.stack_plan, str(config.placement))
    target = _target_class(found, model)
    with torch.device("meta"):
        placed = target(config, **target.options_like(model))
    fresh = take_tensors(placed, model, norm_sources(_plan_of(found, model), config.stack_plan, placed))
    placed.train(model.training)
    if hasattr(model, "generation_config"):
        placed.generation_config = copy.deepcopy(model.generation_config)
    placed.tie_weights()
    for module in fresh:
        placed._init_weights(module)
    if seed is not None:
        placed.initialize(seed)
    if has_activation_checkpointing(model):
        enable_activation_checkpointing(placed)
    before, now = dict(model.named_parameters()), dict(placed.named_parameters())
    kept, known = set(map(id, now.values())), set(map(id, before.values()))
    added = tuple(name for name, parameter in now.items() if id(parameter) not in known)
    removed = tuple(name for name, parameter in before.items() if id(parameter) not in kept)
    # new weights of these kinds change nothing at first
    neutral = all(isinstance(module, ActivationGate | Residual | nn.Linear | Conv1D) for module in fresh)
    keeps = change.keeps_function and seed is None and neutral and not removed
    return placed, replace(change, keeps_function=keeps, added=added, removed=removed)


def preview_placements(model: PreTrainedModel) -> dict[str, PlacementChange]:
    """Return, for every scheme and for the model's own placement with every modifier, what `apply_placement` would do.

    Args:
        model: as `apply_placement` takes it; it stays as it is.

    Returns:
        By the text form of each placement: whether the function is kept, and what changes.

    Raises:
        PlacementError: the model is of no supported family.
    """
    found = placeable_architecture(model)
    own = model.config.placement if isinstance(model.config, PlacedConfig) else found.config_class.stock_placement
    present = {term.name for term in Placement.parse(own).modifiers}
    texts = [*list_schemes(), *(f"{own}+{modifier}" for modifier in list_modifiers() if modifier not in present)]
    before = _plan_of(found, model)
    configs = (placed_config(found, model, text) for text in texts)
    return {
        text: _describe_change(before, config.stack_plan, str(config.placement))
        for text, config in zip(texts, configs, strict=True)
    }


def placeable_architecture(model: PreTrainedModel) -> Architecture:
    """Return the architecture of a model that `apply_placement` takes, stock or of this library.

    Raises:
        PlacementError: there is none, or the model's parameters are not plain ones of one device.
    """
    families = {one.stock_model_type: one for one in ARCHITECTURES.values()}
    model_type = getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__
    found = families.get(model_type.removeprefix("mixln_"))
    if found is None or not any(issubclass(one, type(model)) for one in found.model_classes):
        raise PlacementError(
            f"a {type(model).__name__} cannot be given a placement: give the language model, the classifier "
            f"or the bare stack of {', '.join(sorted(families))}, before adapters or other heads are put on it"
        )
    if getattr(model, "is_quantized", False) or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise PlacementError(
            "a quantised model, or one spread over devices, cannot be given a placement: load it whole"
        )
    if has_adapters(model):
        raise PlacementError("a model with adapters cannot be given a placement: merge them, or put them on afterwards")
    return found


def _target_class(found: Architecture, model: PreTrainedModel) -> type[PlacedPreTrainedModel]:
    return next(one for one in found.model_classes if issubclass(one, type(model)))


def _plan_of(found: Architecture, model: PreTrainedModel) -> StackPlan:
    if isinstance(model.config, PlacedConfig):
        return model.config.stack_plan
    return Placement.parse(found.config_class.stock_placement).plan(int(model.config.num_hidden_layers))


def placed_config(found: Architecture, model: PreTrainedModel, placement: str) -> PlacedConfig:
    """Return a model's config as this library's, with a placement.

    Raises:
        PlacementError: there is no such placement, or it does not fit the number of layers or another field.
    """
    Placement.parse(placement).plan(int(model.config.num_hidden_layers))
    # not the to_dict of this library's configs: it adds the mark that makes stock classes refuse the present placement
    values = PreTrainedConfig.to_dict(model.config)
    for name in ("model_type", "architectures", "transformers_version", "layer_types", "placement", "_name_or_path"):
        values.pop(name, None)
    own_types = getattr(model.config, "layer_types", None)
    if own_types is not None:
        values["layer_types"] = list(own_types)
    try:
        config = found.config_class(**values, placement=placement)
    except StrictDataclassError as error:
        raise PlacementError(
            f"{type(model).__name__} cannot be given a placement: {error.__cause__ or error}"
        ) from error
    config._attn_implementation = model.config._attn_implementation
    return config


def _describe_change(before: StackPlan, after: StackPlan, placement: str) -> PlacementChange:
    """Compare two stacks of as many blocks: do the same weights compute the same function, and what differs."""
    keeps = _starting_function(after, before).same_function_as(before)
    return PlacementChange(placement, keeps, tuple(departures(after, before)))


def _starting_function(after: StackPlan, before: StackPlan) -> StackPlan:
    """Return the plan without its new gates and learned scales, which are the identity at first."""

    def neutral(new: SublayerPlan, old: SublayerPlan) -> SublayerPlan:
        scale = (
            old.residual_scale if new.residual_scale == "learned" and old.residual_scale == 1 else new.residual_scale
        )
        return replace(new, gate=new.gate if old.gate is not None else None, residual_scale=scale)

    blocks = tuple(
        replace(new, **{one: neutral(new.sublayer(one), old.sublayer(one)) for one in SUBLAYERS})
        for new, old in zip(after.blocks, before.blocks, strict=True)
    )
    # a new bias of the head is 0; one that is removed was trained
    return replace(after, blocks=blocks, head_bias=after.head_bias and before.head_bias)
