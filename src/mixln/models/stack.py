"""What stacks of every kind share: blocks of transformers' own parts, the stack around them, and its heads.

    input -> embedding -> * embedding factor -> [embedding_norm] -> block 1 .. L -> final norm -> head
                                                                      |
                                  attention and feed-forward, each inside a `Residual` (see mixln.placement.residual)

`decoder.py` and `encoder.py` add what only they have. An architecture's file names the stock classes and what departs;
the parts are found by transformers' own naming of them (`LlamaAttention`, `ViTMLP`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from mixln.models.attention import PlacedAttention
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.transformers_internals import GradientCheckpointingLayer, stock_base, stock_part
from mixln.placement import ParameterRole, PlacedBlock


class PlacedLayer(PlacedBlock, GradientCheckpointingLayer):
    """One block: an architecture's attention and feed-forward, with the norms where the plan puts them.

    Attributes:
        attention_class: of (config), or of (config, layer_idx) where keys and values are kept.
        mlp_class: of (config).
        attention_name: what the architecture calls its attention.
    """

    attention_class: ClassVar[type[PlacedAttention]]
    mlp_class: ClassVar[Callable[[Any], nn.Module]]
    attention_name: ClassVar[str]
    mlp: nn.Module

    def __init__(self, config: PlacedConfig, layer_idx: int) -> None:
        super().__init__()
        plan, norm = config.stack_plan.blocks[layer_idx], config.norm_factory()
        attention = self.build_attention(config, layer_idx)
        attention.add_qkv_norms(plan.attention.qkv_norm, norm)
        self.add_module(self.attention_name, attention)
        self.mlp = type(self).mlp_class(config)
        self.add_placement(plan, norm, config.hidden_size)

    def build_attention(self, config: Any, layer_idx: int) -> PlacedAttention:
        """Return the attention of one block."""
        raise NotImplementedError


class PlacedStack(PlacedPreTrainedModel):
    """The stack without the head. Mixed in before an architecture's own model, whose forward runs the blocks.

    Attributes:
        config_class: of this library.
        layer_class: of the blocks; if an architecture does not give one, it is made of its attention and feed-forward.
        layer_base: the class of this library that such a one inherits from.
        layer_name: what transformers' name of a block's class ends in.
        embedding_norm_name: what the stack calls the norm on the embedding.
        final_norm_name: what it calls the norm before the head.
    """

    layer_class: ClassVar[type[PlacedLayer]]
    layer_base: ClassVar[type[PlacedLayer]]
    layer_name: ClassVar[str]
    parameter_roles: ClassVar[Mapping[str, ParameterRole]]
    embedding_norm_name: ClassVar[str]
    final_norm_name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if any(base.__module__.startswith("transformers.models.") for base in cls.__bases__):
            cls._name_parts()
        super().__init_subclass__(**kwargs)

    @classmethod
    def _name_parts(cls) -> None:
        stock = stock_base(cls)
        attention = stock_part(stock, "Attention")
        if not hasattr(cls, "layer_class"):
            own = placed_class(cls, attention, (PlacedAttention, attention))
            parts = {"attention_class": own, "mlp_class": stock_part(stock, "MLP")}
            cls.layer_class = placed_class(cls, stock_part(stock, cls.layer_name), (cls.layer_base,), **parts)
        cls._no_split_modules = [cls.layer_class.__name__]
        cls._can_record_outputs = {"hidden_states": cls.layer_class, "attentions": attention}

    def build_layers(self) -> nn.ModuleList:
        """Return the blocks, each by its part of the plan."""
        config: Any = self.config
        return nn.ModuleList(self.layer_class(config, index) for index in range(config.num_hidden_layers))

    def build_final_norm(self) -> nn.Module:
        """Return the norm behind the blocks, or the identity."""
        config: Any = self.config
        plan = config.stack_plan.final_norm
        return nn.Identity() if plan is None else config.norm_factory()(plan)

    def embedding_parameters(self) -> list[str]:
        """Return the names of the parameters that the embedding is linear in, which its factor may go into."""
        raise NotImplementedError


class PlacedWithHead(PlacedPreTrainedModel):
    """A stack with a head. Mixed in before an architecture's own class, whose forward it is.

    Attributes:
        model_class: of the stack.
    """

    model_class: ClassVar[type[PlacedStack]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        stack: type[PlacedStack] | None = getattr(cls, "model_class", None)
        if stack is not None:
            cls.config_class, cls.parameter_roles = stack.config_class, stack.parameter_roles
            cls._no_split_modules, cls._can_record_outputs = stack._no_split_modules, stack._can_record_outputs
        super().__init_subclass__(**kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        # what an architecture has of its own stands in the class of its stack
        stack: Any = self.base_model
        stack._init_weights(module)


def placed_class(owner: type, stock: type, bases: tuple[type, ...], **attributes: Any) -> Any:
    """Make the class `MixLN...` for a stock one, in the module of its owner, where pickle looks for it."""
    module = owner.__module__
    made = type(f"MixLN{stock.__name__}", bases, {"__module__": module, "__doc__": bases[0].__doc__, **attributes})
    setattr(sys.modules[module], made.__name__, made)
    return made
