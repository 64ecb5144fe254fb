"""Norms behind an attention's projections, for any architecture of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from mixln.models.transformers_internals import check_reads, own_forward, unread_projections_error
from mixln.placement import NormFactory, QKVNormPlan

_LETTERS = {"query": "q", "key": "k", "value": "v"}


class PlacedAttention(nn.Module):
    """Mixed in before an architecture's own attention: `class A(PlacedAttention, LlamaAttention)`.

    The architecture's own forward always runs, with all arguments that it is given. If the plan norms query, key or
    value, that forward sees projections with the norms behind them:

        hidden_states -> projections -> q_norm, k_norm, v_norm -> positions -> cache -> scores -> output projection

    The norms are `q_norm`, `k_norm` and `v_norm`, as in Qwen3 and OLMo 2. Those that an architecture brings along are
    taken out unless the plan has them.

    Attributes:
        projection_parts: the name of each projection, and which of q, k and v it returns side by side.
    """

    projection_parts: ClassVar[Mapping[str, str]] = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}

    qkv_norm: QKVNormPlan | None = None
    head_dim: int
    config: Any
    _own_forward: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._own_forward = staticmethod(own_forward(cls, PlacedAttention))
        check_reads(cls._own_forward, cls.projection_parts)

    def add_qkv_norms(self, plan: QKVNormPlan | None, norm: NormFactory) -> None:
        """Create the norms that a plan asks for; None: none."""
        self.qkv_norm = plan
        for letter in _LETTERS.values():
            if hasattr(self, f"{letter}_norm"):
                self.add_module(f"{letter}_norm", nn.Identity())
        if plan is None:
            return
        heads = self.config.num_attention_heads
        key_value_heads = getattr(self.config, "num_key_value_heads", None) or heads
        for projection in plan.projections:
            count = heads if projection == "query" else key_value_heads
            width = self.head_dim * (1 if plan.per_head else count)
            self.add_module(f"{_LETTERS[projection]}_norm", norm(plan.norm, width))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return (batch, sequence, hidden) and the attention weights: the architecture's own forward, as it is called.

        Raises:
            RuntimeError: that forward does not use its projections as those do that this library was tested with.
        """
        if self.qkv_norm is None:
            return self._own_forward(self, *args, **kwargs)
        view = _NormedView(self)
        output = self._own_forward(view, *args, **kwargs)
        if len(view.projected) != len(self.projection_parts):
            raise unread_projections_error(type(self), set(self.projection_parts) - set(view.projected))
        return output

    def project_and_norm(self, name: str, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what a projection gives for (batch, sequence, hidden), each of its parts behind its norm."""
        projected = getattr(self, name)(hidden_states)
        letters = self.projection_parts[name]
        if len(letters) == 1:
            return self._normed(letters, projected)
        parts = projected.chunk(len(letters), dim=-1)
        return torch.cat([self._normed(letter, part) for letter, part in zip(letters, parts, strict=True)], dim=-1)

    def _normed(self, letter: str, states: torch.Tensor) -> torch.Tensor:
        """Return (batch, sequence, heads * head size), normed if the plan says so."""
        norm = getattr(self, f"{letter}_norm", None)
        if norm is None:
            return states
        assert self.qkv_norm is not None
        if not self.qkv_norm.per_head:
            return norm(states)
        return norm(states.unflatten(-1, (-1, self.head_dim))).flatten(-2)


def _unchanged(states: torch.Tensor) -> torch.Tensor:
    return states


class _NormedView:
    """An attention as its architecture's forward sees it: projections end in norms, norms of its own are none.

    Made for one call, so that it reads whatever stands in the attention then (adapters, sharded weights).
    """

    def __init__(self, attention: PlacedAttention) -> None:
        own: dict[str, Any] = self.__dict__
        own["attention"] = attention
        own["projected"] = projected = []

        def with_norms(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
            def project(hidden_states: torch.Tensor) -> torch.Tensor:
                projected.append(name)
                return attention.project_and_norm(name, hidden_states)

            return project

        for name in attention.projection_parts:
            own[name] = with_norms(name)
        for letter in _LETTERS.values():
            own[f"{letter}_norm"] = _unchanged

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attention, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.attention, name, value)
