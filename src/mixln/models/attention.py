"""Norms between an attention's projections and its scores, for any architecture of transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mixln.placement import NormFactory, QKVNormPlan

_LETTERS = {"query": "q", "key": "k", "value": "v"}


class PlacedAttention(nn.Module):
    """Mixed in before an architecture's own attention: `class A(PlacedAttention, LlamaAttention)`.

    Without norms of query, key or value the architecture's forward runs as it is. With them this one does, which is the
    same up to the norms:

        hidden_states -> projections -> q_norm, k_norm, v_norm -> rotary positions -> cache -> scores -> output

    The norms are `q_norm`, `k_norm` and `v_norm`, as in Qwen3 and OLMo 2. Those that an architecture brings along are
    taken out unless the plan has them.
    """

    qkv_norm: QKVNormPlan | None = None
    head_dim: int
    scaling: float
    attention_dropout: float
    layer_idx: int
    config: Any

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

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return query, key and value of (batch, sequence, hidden), each (batch, sequence, its heads * head size)."""
        return tuple(getattr(self, f"{letter}_proj")(hidden_states) for letter in "qkv")

    def project_output(self, mixed: torch.Tensor) -> torch.Tensor:
        """Return the sublayer's output for the heads' outputs side by side."""
        return self.get_submodule("o_proj")(mixed)

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Return (batch, sequence, hidden) and the attention weights, as the architecture's own forward does.

        With norms of its own, arguments but the first are taken by name, as every architecture's block gives them.
        """
        if self.qkv_norm is None:
            return super().forward(hidden_states, *args, **kwargs)
        return self._forward_normed(hidden_states, **kwargs)

    def _forward_normed(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            self._normed(letter, states).transpose(1, 2)
            for letter, states in zip("qkv", self.project(hidden_states), strict=True)
        )
        if position_embeddings is not None:
            # some architectures keep the angles in float32 and go back to the dtype of the queries, others do not
            query, key = self._own("apply_rotary_pos_emb")(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        window = getattr(self, "sliding_window", getattr(self.config, "sliding_window", None))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, self._own("eager_attention_forward")
        )
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **({} if window is None else {"sliding_window": window}),
            **kwargs,
        )
        return self.project_output(mixed.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights

    def _normed(self, letter: str, states: torch.Tensor) -> torch.Tensor:
        """Return a projection cut into heads, (batch, sequence, heads, head size), normed if the plan says so."""
        assert self.qkv_norm is not None
        norm = getattr(self, f"{letter}_norm", nn.Identity())
        heads = (*states.shape[:-1], -1, self.head_dim)
        return norm(states.view(heads)) if self.qkv_norm.per_head else norm(states).view(heads)

    def _own(self, name: str) -> Callable[..., Any]:
        # each architecture has its own explicit softmax, and its own rotation, beside its attention class
        own = next(one for one in type(self).__mro__ if one.__module__.startswith("transformers."))
        return getattr(sys.modules[own.__module__], name)
