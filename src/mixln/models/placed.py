"""What every architecture of this library shares: a config that carries its placement, and weights drawn by role.

An architecture's own file inherits from these and from transformers' classes, and adds only what is its own.
"""

# no `from __future__ import annotations`: strict dataclasses do not check fields whose annotations are strings

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mixln.placement import (
    ActivationGate,
    DynamicErf,
    DynamicTanh,
    GroupedNorm,
    NormFactory,
    ParameterRole,
    Placement,
    Residual,
    StackPlan,
    find_role,
    initialize,
)


@dataclass(kw_only=True)
class PlacedConfig(PreTrainedConfig):
    """The fields that a config of this library has beside those of its architecture.

    Attributes:
        placement: text form of the placement, for example `mix(alpha=0.25)`.
        embedding_std: standard deviation of the embedding's initial weights; None: by the placement's rule, which is
            `initializer_range` unless the placement scales the init.
        initializer_range: standard deviation of the initial weights where the placement has no rule of its own.
        placement_depths: for a model from which layers were removed, the depth l (from 1) that each of its layers had.
        placement_num_layers: and the number of layers L that it had.
    """

    stock_placement: ClassVar[str] = "pre"
    """The placement of the architecture as transformers has it: only that one may be opened by stock classes."""

    recipe_names: ClassVar[Mapping[str, str | None]] = {}
    """What the architecture calls a recipe's field; None if it has none. Others are called as in the recipe."""

    recipe_values: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that recipes do not have, where a model that is trained from one departs from the default."""

    placement: str = "pre"
    embedding_std: int | float | None = None
    initializer_range: Any = 0.02  # a number; in config.json also what `to_dict` puts there
    placement_depths: list[int] | None = None
    placement_num_layers: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # what `to_dict` puts there for stock classes to stumble over
        own = kwargs.pop(_OWN_INITIALIZER_RANGE, None)
        if str(self.initializer_range).startswith(_REFUSAL):
            self.initializer_range = own
        # folders of before had it in `layer_types`; some architectures have such a field, others not
        own = kwargs.pop(_OWN_LAYER_TYPES, None)
        if any(str(layer_type).startswith(_REFUSAL) for layer_type in kwargs.get("layer_types") or ()):
            kwargs.pop("layer_types")
        if any(str(layer_type).startswith(_REFUSAL) for layer_type in getattr(self, "layer_types", None) or ()):
            self.layer_types = own
        self.placement = str(Placement.parse(self.placement))
        super().__post_init__(**kwargs)

    def validate_placement(self) -> None:
        """Check, at construction and on saving, that the placement can be planned for this number of layers."""
        _ = self.stack_plan

    def validate_embedding_std(self) -> None:
        """Check that the standard deviation is a positive number."""
        if self.embedding_std is not None and not 0 < self.embedding_std < math.inf:
            raise ValueError(f"embedding_std must be a finite number above 0, not {self.embedding_std}")

    def validate_initializer_range(self) -> None:
        """Check that it is a number."""
        value = self.initializer_range
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"Field 'initializer_range' expected float, got {type(value).__name__} (value: {value!r})")

    def validate_heads(self) -> None:
        """Check what stock configs do not: that heads divide what they share, and that rotary pairs fit in each."""
        heads, head_dim = self.num_attention_heads, getattr(self, "head_dim", None)
        if heads < 1 or (head_dim is None and self.hidden_size % heads != 0):
            raise ValueError(f"num_attention_heads ({heads}) does not divide hidden_size ({self.hidden_size})")
        key_value_heads = getattr(self, "num_key_value_heads", heads)
        if not key_value_heads or heads % key_value_heads != 0:
            raise ValueError(f"num_key_value_heads ({key_value_heads}) does not divide num_attention_heads ({heads})")
        size = self.hidden_size // heads if head_dim is None else head_dim
        if hasattr(self, "rope_parameters") and size % 2 != 0:
            raise ValueError(f"the size of a head ({size}) must be even for rotary position embeddings")

    def norm_factory(self) -> NormFactory:
        """Return the factory of the architecture's own norms."""
        raise NotImplementedError

    @classmethod
    def from_recipe(cls, **fields: Any) -> Self:
        """Return a config from the fields of a recipe, which are called as Llama calls them.

        Raises:
            ValueError: the architecture lacks a field that is given and not None.
            PlacementError, StrictDataclassError: as the constructor.
        """
        heads = fields["num_attention_heads"]
        derived = {"num_key_value_heads": heads, "head_dim": fields["hidden_size"] // max(1, heads)}
        values = {**cls.recipe_values, **{name: value for name, value in derived.items() if hasattr(cls, name)}}
        for name, value in fields.items():
            own = cls.recipe_names.get(name, name)
            if own is None and value is not None:
                raise ValueError(f"{cls.model_type.removeprefix('mixln_')} has no {name}: leave it at its default")
            if own is not None and (value is not None or own not in values):
                values[own] = value
        return cls(**values)

    @property
    def stack_plan(self) -> StackPlan:
        """The plan of this model's stack."""
        depths = None if self.placement_depths is None else tuple(self.placement_depths)
        return _plan(self.placement, self.num_hidden_layers, depths, self.placement_num_layers)

    @property
    def initial_embedding_std(self) -> float:
        """Standard deviation that the embedding is drawn with."""
        if self.embedding_std is not None:
            return float(self.embedding_std)
        return self.stack_plan.init_rule("embedding").standard_deviation(
            base_std=self.initializer_range,
            hidden_size=self.hidden_size,
            fan_in=self.hidden_size,
            fan_out=self.vocab_size,
        )

    @property
    def is_stock(self) -> bool:
        """Whether transformers' own class of the architecture computes the same function of the same weights."""
        return self.stack_plan.same_function_as(_plan(self.stock_placement, self.num_hidden_layers, None, None))

    def to_dict(self) -> dict[str, Any]:
        """Return what goes into config.json.

        Stock classes ignore fields that they do not know, and some placements have the very parameters of a stock
        model; so a placement that they would not execute gets an `initializer_range` that their validation rejects.
        Not a field that `PreTrainedConfig` itself checks: the Trainer reads config.json with it when it resumes.
        """
        output = super().to_dict()
        if not self.is_stock:
            output[_OWN_INITIALIZER_RANGE] = output["initializer_range"]
            output["initializer_range"] = (
                f"{_REFUSAL} {self.placement!r}: `import mixln`, then load with AutoModelForCausalLM"
            )
        return output


_REFUSAL = "mixln placement"
_OWN_INITIALIZER_RANGE = "own_initializer_range"
_OWN_LAYER_TYPES = "own_layer_types"


@lru_cache(maxsize=256)
def _plan(
    placement: str, num_layers: int, depths: tuple[int, ...] | None, original_num_layers: int | None
) -> StackPlan:
    return Placement.parse(placement).plan(num_layers, depths=depths, original_num_layers=original_num_layers)


_LOADED = "_is_hf_initialized"
"""The mark that transformers leaves on a tensor that it has loaded, so that initialisation passes it over."""


_PLACEMENT_MODULES = (Residual, ActivationGate, GroupedNorm, DynamicTanh, DynamicErf)


def _is_loaded(tensor: torch.Tensor) -> bool:
    return getattr(tensor, _LOADED, False)


class PlacedPreTrainedModel(PreTrainedModel):
    """Initialisation by role, and loading that fails rather than leave a parameter behind."""

    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = {}
    """Parameter-name pattern (relative to the base model) to role; `*` is the position of a block."""

    def initialize(self, seed: int) -> Self:
        """Draw all weights anew, whatever they held, each from the generator of (seed, parameter name).

        Also fills the buffers, so that a model built on the meta device is complete after `to_empty(device=...)` and
        this call, and equal to one built directly.

        Raises:
            PlacementError: the model is still on the meta device.
        """
        for tensor in (*self.parameters(), *self.buffers()):
            if hasattr(tensor, _LOADED):
                delattr(tensor, _LOADED)
        for name, module in self.named_modules():
            if find_role(f"{name}.weight", self._role_patterns()) is None:
                self._init_weights(module)
            elif getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.get_parameter("bias"))
        self._draw(seed)
        return self

    def initialize_weights(self) -> None:
        """Initialise what has not been loaded; called by transformers. The seed comes from PyTorch's global generator.

        So `torch.manual_seed(0)` before the construction makes it reproducible, and two constructions differ.
        """
        super().initialize_weights()
        missing = [parameter for parameter in self.parameters() if not _is_loaded(parameter)]
        if missing:
            self._draw(int(torch.randint(2**62, (), device="cpu")), loaded_too=False)
            for parameter in missing:
                setattr(parameter, _LOADED, True)

    def _draw(self, seed: int, *, loaded_too: bool = True) -> None:
        config, prefix = self.config, f"{self.base_model_prefix}."
        assert isinstance(config, PlacedConfig)
        initialize(
            self,
            config.stack_plan,
            self._role_patterns(),
            seed=seed,
            hidden_size=config.hidden_size,
            base_std=config.initializer_range,
            embedding_std=config.embedding_std,
            wanted=None if loaded_too else lambda parameter: not _is_loaded(parameter),
            # the base model alone draws the same weights as inside a model with a head
            draw_name=lambda name: name.removeprefix(prefix),
        )

    def _role_patterns(self) -> dict[str, ParameterRole]:
        prefix = f"{self.base_model_prefix}."
        return {pattern: role for name, role in self.parameter_roles.items() for pattern in (name, prefix + name)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, _PLACEMENT_MODULES):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding) and not _is_loaded(module.weight):
            # matrices with a role are drawn by name in `_draw`; this is for one that transformers makes when it resizes
            assert isinstance(self.config, PlacedConfig)
            nn.init.normal_(module.weight, std=self.config.initial_embedding_std)
        elif isinstance(module, Conv1D) and not _is_loaded(module.bias):
            nn.init.zeros_(module.bias)
        else:
            # not the architecture's own rules for its weights: the placement has them
            PreTrainedModel._init_weights(self, module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a model as `transformers.PreTrainedModel.from_pretrained` does, but never with weights made up.

        Raises:
            ValueError: the checkpoint lacks parameters of this placement, or has others; the error lists them.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        model, info = loaded
        # a model without a head opens a checkpoint with one, as everywhere in transformers
        headless = {name for name in info["unexpected_keys"] if cls.parameter_roles.get(name) == "head"}
        lists = {"missing": info["missing_keys"], "left over": set(info["unexpected_keys"]) - headless}
        faults = [f"{what}: {', '.join(sorted(names))}" for what, names in lists.items() if names]
        if faults:
            raise ValueError(
                f"the checkpoint {pretrained_model_name_or_path} does not fit placement "
                f"{model.config.placement!r}; {'; '.join(faults)}"
            )
        return (model, info) if wants_info else model
