"""The config that all architectures of this library share: it carries the placement.

The config of an architecture inherits from this one and from transformers' config, and adds what only it has.
"""

# no `from __future__ import annotations`: strict dataclasses do not check fields whose annotations are strings

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from mixln.models.stock_refusal import lies_in_a_folder, put_refusal_on, take_refusal_off
from mixln.models.transformers_internals import stock_base, stock_part
from mixln.placement import ArchitectureNorm, Placement, PlacementError, StackPlan


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

    norm_eps_name: ClassVar[str | None] = "rms_norm_eps"
    """The field with the eps of the architecture's norms; None: it is fixed."""

    recipe_names: ClassVar[Mapping[str, str | None]] = {}
    """What the architecture calls a recipe's field; None if it has none. See `recipe_name`."""

    recipe_values: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that recipes do not have, where a model that is trained from one departs from the default."""

    placement: str = "pre"
    embedding_std: int | float | None = None
    initializer_range: Any = 0.02  # a number; in config.json also what `to_dict` puts there
    placement_depths: list[int] | None = None
    placement_num_layers: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        take_refusal_off(self, kwargs)
        if not lies_in_a_folder(type(self)):
            # of a self-contained folder: it names code that a folder written from here would not have
            kwargs.pop("auto_map", None)
        self.placement = str(Placement.parse(self.placement))
        super().__post_init__(**kwargs)

    def validate_placement(self) -> None:
        """Check, at construction and on saving, that the placement fits the number of layers and the width."""
        for norm in self.stack_plan.norms:
            if self.hidden_size % norm.groups != 0:
                raise PlacementError(
                    f"{self.placement}: {norm.groups} groups of channels do not divide hidden_size ({self.hidden_size})"
                )

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

    def norm_factory(self) -> ArchitectureNorm:
        """Return the factory of the architecture's own norms: here of its RMSNorm."""
        assert self.norm_eps_name is not None
        norm_class, eps = stock_part(stock_base(type(self)), "RMSNorm"), float(getattr(self, self.norm_eps_name))
        return ArchitectureNorm(lambda width: norm_class(width, eps=eps), self.hidden_size, eps=eps)

    @classmethod
    def recipe_name(cls, field: str) -> str | None:
        """Return what the architecture calls a recipe's field; None: it has none."""
        return cls.norm_eps_name if field == "rms_norm_eps" else cls.recipe_names.get(field, field)

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
            own = cls.recipe_name(name)
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
            fan_in=self.embedding_fans[0],
            fan_out=self.embedding_fans[1],
        )

    @property
    def embedding_fans(self) -> tuple[int, int]:
        """The sizes of the embedding's matrix."""
        return self.hidden_size, self.vocab_size

    @property
    def beyond_stock(self) -> str | None:
        """What the model does beside its placement that transformers' own class does not, in words; None: nothing."""
        return None

    @property
    def is_stock(self) -> bool:
        """Whether transformers' own class of the architecture computes the same function of the same weights."""
        stock = _plan(self.stock_placement, self.num_hidden_layers, None, None)
        return self.beyond_stock is None and self.stack_plan.same_function_as(stock)

    def to_dict(self) -> dict[str, Any]:
        """Return what goes into config.json: for a placement that stock classes would ignore, one that they refuse."""
        output = super().to_dict()
        if not self.is_stock:
            put_refusal_on(output, self.placement)
        return output


@lru_cache(maxsize=256)
def _plan(
    placement: str, num_layers: int, depths: tuple[int, ...] | None, original_num_layers: int | None
) -> StackPlan:
    return Placement.parse(placement).plan(num_layers, depths=depths, original_num_layers=original_num_layers)
