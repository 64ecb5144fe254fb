"""What the models of all architectures share: weights drawn by role, loading and saving that keep the placement.

The models of an architecture inherit from this one and from transformers' models, and add what only they have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from mixln.models.placed_config import PlacedConfig
from mixln.models.stock_refusal import lies_in_a_folder
from mixln.models.transformers_internals import LOADED_MARK, Conv1D
from mixln.placement import (
    ActivationGate,
    GroupedNorm,
    LayerScale,
    ParameterRole,
    PlacedBlock,
    PointwiseNorm,
    Residual,
    find_role,
    initialize,
)

__all__ = ["PlacedConfig", "PlacedPreTrainedModel"]

_PLACEMENT_MODULES = (Residual, ActivationGate, GroupedNorm, LayerScale, PointwiseNorm)


def mark_as_loaded(tensor: torch.Tensor) -> None:
    """Let initialisation skip a tensor that has its values already."""
    setattr(tensor, LOADED_MARK, True)


def _is_loaded(tensor: torch.Tensor) -> bool:
    return getattr(tensor, LOADED_MARK, False)


def _is_wanted(parameter: torch.Tensor) -> bool:
    return not (_is_loaded(parameter) or parameter.is_meta)


class PlacedPreTrainedModel(PreTrainedModel):
    """Initialisation by role, and loading that fails rather than leave a parameter behind."""

    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = {}
    """Parameter-name pattern (relative to the base model) to role; `*` is the position of a block."""

    new_head: ClassVar[frozenset[str]] = frozenset()
    """The parameters that a checkpoint of a model with another head may lack: they are drawn, to be trained."""

    @classmethod
    def options_like(cls, model: Any) -> dict[str, Any]:  # noqa: ARG003
        """Return what the constructor of this class, and of its stock one, needs beside the config for such a model.

        Args:
            model: of this class, or of its stock one.
        """
        return {}

    def initialize(self, seed: int) -> Self:
        """Draw all weights anew, whatever they held, each from the generator of (seed, parameter name).

        Also fills the buffers. So a model built on the meta device is complete after `to_empty(device=...)` and this
        call, and equal to one built directly.

        Raises:
            PlacementError: the model is still on the meta device.
        """
        for tensor in (*self.parameters(), *self.buffers()):
            if hasattr(tensor, LOADED_MARK):
                delattr(tensor, LOADED_MARK)
        # a stack draws its own: its architecture may have rules of its own
        stacks = [child.initialize(seed) for child in self.children() if isinstance(child, PlacedPreTrainedModel)]
        done = {id(part) for stack in stacks for part in (*stack.modules(), *stack.parameters())}
        for name, module in self.named_modules():
            if id(module) in done:
                continue
            if find_role(f"{name}.weight", self._role_patterns()) is None:
                self._init_weights(module)
            elif getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.get_parameter("bias"))
        self._draw(seed, wanted=lambda parameter: id(parameter) not in done)
        return self

    def initialize_weights(self) -> None:
        """Initialise what has not been loaded; called by transformers. The seed comes from PyTorch's global generator.

        So `torch.manual_seed(0)` before the construction makes it reproducible, and two constructions differ. Tensors
        on the meta device, as under accelerate's `init_empty_weights`, are skipped.
        """
        super().initialize_weights()
        missing = [parameter for parameter in self.parameters() if _is_wanted(parameter)]
        if missing:
            self._draw(int(torch.randint(2**62, (), device="cpu")), wanted=_is_wanted)
            for parameter in missing:
                mark_as_loaded(parameter)

    def _draw(self, seed: int, *, wanted: Callable[[torch.Tensor], bool]) -> None:
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
            wanted=wanted,
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
        """Load a model as `transformers.PreTrainedModel.from_pretrained` does, but never with invented weights.

        The head of a classifier (`new_head`) is drawn if the checkpoint is of a model without it, as in transformers.

        Raises:
            ValueError: the checkpoint lacks parameters of this placement, or has others; or its config names this very
                class, and it lacks the head. The error lists them.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        model, info = loaded
        # a model without a head opens a checkpoint with one, as everywhere in transformers
        other_head = {name for name in info["unexpected_keys"] if _is_of_head(cls, name)}
        # what was saved from this class has a head, or is damaged
        new_head = frozenset() if cls.__name__ in (model.config.architectures or ()) else cls.new_head
        lists = {
            "missing": set(info["missing_keys"]) - new_head,
            "left over": set(info["unexpected_keys"]) - other_head,
        }
        faults = [f"{what}: {', '.join(sorted(names))}" for what, names in lists.items() if names]
        if faults:
            raise ValueError(
                f"the checkpoint {pretrained_model_name_or_path} does not fit placement "
                f"{model.config.placement!r}; {'; '.join(faults)}"
            )
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model as `transformers.PreTrainedModel.save_pretrained` does.

        A model that was opened from a folder with its code (`mixln.exchange.save_self_contained`) is saved with it.

        Raises:
            ValueError: the placement in the config is not the one that the blocks were built with.
        """
        config: Any = self.config
        blocks = [module for module in self.modules() if isinstance(module, PlacedBlock)]
        for block, plan in zip(blocks, config.stack_plan.blocks, strict=False):
            if replace(block.plan, init={}) != replace(plan, init={}):
                raise ValueError(
                    f"the config says placement {config.placement!r}, but the model was built with another: what is "
                    "saved would compute something else. Use mixln.apply_placement instead of changing the config"
                )
        if lies_in_a_folder(type(self)):
            # what came from the hub refers to it, also for the classes that transformers does not write anew
            config.auto_map = {name: found.split("--")[-1] for name, found in getattr(config, "auto_map", {}).items()}
        super().save_pretrained(save_directory, *args, **kwargs)


def _is_of_head(model_class: type[PlacedPreTrainedModel], name: str) -> bool:
    return model_class.parameter_roles.get(f"{name.rpartition('.')[0]}.weight") == "head"
