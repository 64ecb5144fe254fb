"""Giving a built or loaded model of transformers another placement, in place."""

from __future__ import annotations

from dataclasses import replace

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from mixln.models.change import PlacementChange, describe_change
from mixln.models.decoder import PlacedForCausalLM, PlacedModel
from mixln.models.graft import has_adapters, norm_sources, take_tensors
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.registry import ARCHITECTURES, Architecture
from mixln.placement import Placement, PlacementError, StackPlan, list_modifiers, list_schemes


def apply_placement(model: PreTrainedModel, placement: str, *, seed: int | None = None) -> PlacementChange:
    """Move the norms of a model to where a placement wants them, in place.

    The model stays the same object, with the same parameters (an optimiser that holds them keeps them), but becomes of
    this library's model and config classes, so that what anybody saves of it reloads with its placement. Norms that
    stand where they stood keep their weights; new ones, gates and learned scales are at their initial values. Hooks are
    not taken over: put them on afterwards, as adapters.

    Args:
        model: a stock language model of a supported family, or its stack alone, or a model of this library.
        placement: text form, as `mix(alpha=0.25)`.
        seed: draws all weights anew by the placement's rules of initialisation, for a model to be trained from scratch;
            None: keeps the weights that there are.

    Returns:
        Whether the function was kept, and what changed.

    Raises:
        PlacementError: the model is of no supported family, spread over devices, quantised or has adapters; or there is
            no such placement, or it does not fit.
    """
    found = _architecture_of(model)
    config = placed_config(found, model, placement)
    change = describe_change(_plan_of(found, model), config.stack_plan, str(config.placement))
    target_class = _target_class(found, model)
    with torch.device("meta"):
        target = target_class(config)
    before, is_checkpointing = dict(model.named_parameters()), model.is_activation_checkpointing
    fresh = take_tensors(target, model, norm_sources(_plan_of(found, model), config.stack_plan, target))
    target.train(model.training)
    if hasattr(model, "generation_config"):
        target.generation_config = model.generation_config  # pyright: ignore[reportAttributeAccessIssue]
    model.__class__ = target_class
    model.__dict__.clear()
    model.__dict__.update(target.__dict__)
    assert isinstance(model, PlacedPreTrainedModel)
    model.tie_weights()
    for module in fresh:
        model._init_weights(module)
    if seed is not None:
        model.initialize(seed)
    if is_checkpointing:
        model.activation_checkpointing_enable()
    now = dict(model.named_parameters())
    kept, known = set(map(id, now.values())), set(map(id, before.values()))
    return replace(
        change,
        added=tuple(name for name, parameter in now.items() if id(parameter) not in known),
        removed=tuple(name for name, parameter in before.items() if id(parameter) not in kept),
    )


def preview_placements(model: PreTrainedModel) -> dict[str, PlacementChange]:
    """Return, for every scheme and for the model's own placement with every modifier, what `apply_placement` would do.

    Raises:
        PlacementError: the model is of no supported family.
    """
    found = _architecture_of(model)
    own = model.config.placement if isinstance(model.config, PlacedConfig) else found.config_class.stock_placement
    present = {term.name for term in Placement.parse(own).modifiers}
    texts = [*list_schemes(), *(f"{own}+{modifier}" for modifier in list_modifiers() if modifier not in present)]
    before = _plan_of(found, model)
    configs = (placed_config(found, model, text) for text in texts)
    return {
        text: describe_change(before, config.stack_plan, str(config.placement))
        for text, config in zip(texts, configs, strict=True)
    }


def _architecture_of(model: PreTrainedModel) -> Architecture:
    """Return the architecture whose stock or placed class a model is of.

    Raises:
        PlacementError: there is none, or the model's parameters are not plain ones of one device.
    """
    families = {one.stock_model_type: one for one in ARCHITECTURES.values()}
    model_type = getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__
    found = families.get(model_type.removeprefix("mixln_"))
    if found is None or not issubclass(_target_class(found, model), type(model)):
        raise PlacementError(
            f"a {type(model).__name__} cannot be given a placement: give the language model or the bare stack of "
            f"{', '.join(sorted(families))}, before adapters or other heads are put on it"
        )
    if getattr(model, "is_quantized", False) or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise PlacementError(
            "a quantised model, or one spread over devices, cannot be given a placement: load it whole"
        )
    if has_adapters(model):
        raise PlacementError("a model with adapters cannot be given a placement: merge them, or put them on afterwards")
    return found


def check_can_be_placed(model: PreTrainedModel) -> None:
    """Raise PlacementError if `apply_placement` would refuse a model, whatever the placement."""
    _architecture_of(model)


def _target_class(found: Architecture, model: PreTrainedModel) -> type[PlacedForCausalLM] | type[PlacedModel]:
    return found.causal_lm_class if hasattr(model, "lm_head") else found.model_class


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
    # of a config of this library, what it keeps stock classes off with is of the placement that it has now
    values = PreTrainedConfig.to_dict(model.config)
    for name in ("model_type", "architectures", "transformers_version", "layer_types", "placement"):
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
