"""The one module that executes a placement: `Residual`, and `PlacedBlock`, which puts two of them around a block.

x_block (the block's input)                x (the sublayer's input)
   |                                   ____|____
   |                                  |         |
   |                              rho *         N_in
   |                                  |         gain *
   |                                  S         F
   |                                  |         N_branch
   |                                  |         D
   |__ bypass * ____________________> + <_______|
                                      |
                                    N_out
                                      P
                                      |
                                      y
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from mixln.placement.parameter_names import block_norms
from mixln.placement.plan import BlockPlan, NormPlan, PlacementError, SublayerPlan


class NormFactory(Protocol):
    """Builds the norm a plan asks for. Models pass one that returns their architecture's own class."""

    def __call__(self, plan: NormPlan, width: int | None = None) -> nn.Module:
        """Return a norm over the last dimension, of size `width`, or the hidden size if that is None."""
        ...


Sublayer = Callable[[torch.Tensor], torch.Tensor]
"""An attention or a feed-forward, as a function of (batch, sequence, hidden) alone; shape-preserving."""


class Residual(nn.Module):
    """One residual connection around one sublayer F:

        y = P( N_out( bypass * x_block  +  S( rho * x )  +  D( N_branch( F( gain * N_in(x) ) ) ) ) )

    D is the model's own, not the placement's: a learned scale of each channel and dropped paths (stochastic depth),
    where it has them. It stands at the end of the branch, so that a dropped branch leaves bypass and stream alone, and
    so that no norm but N_out takes the scale off again.

    The norms and the gate belong to the block (so that parameters keep their usual names) and are handed to `forward`.
    The scalars are plain Python floats: they need no loading, sharding or moving between devices, and `torch.compile`
    takes them as inputs, so that layers differing in nothing else share one graph. A learned rho is the parameter
    `residual_scale` of shape (hidden_size,), starting at 1.
    """

    def __init__(self, plan: SublayerPlan, hidden_size: int) -> None:
        super().__init__()
        self.gain = float(plan.gain)
        self.bypass = float(plan.bypass)
        self.gate_position = plan.gate
        # fixed here and not asked of the numbers in `forward`: a branch on a number would compile once per value
        self.has_gain = self.gain != 1.0
        self.has_bypass = self.bypass != 0.0
        self.has_residual_scale = plan.residual_scale != 1.0
        self.residual_scale: float | nn.Parameter
        if plan.residual_scale == "learned":
            self.residual_scale = nn.Parameter(torch.ones(hidden_size))
        else:
            self.residual_scale = float(plan.residual_scale)

    def reset_parameters(self) -> None:
        """Set a learned rho back to 1."""
        if isinstance(self.residual_scale, nn.Parameter):
            nn.init.ones_(self.residual_scale)

    def forward(
        self,
        hidden_states: torch.Tensor,
        sublayer: Sublayer,
        *,
        block_input: torch.Tensor,
        input_norm: nn.Module | None = None,
        branch_norm: nn.Module | None = None,
        layer_scale: nn.Module | None = None,
        drop_path: nn.Module | None = None,
        output_norm: nn.Module | None = None,
        gate: nn.Module | None = None,
    ) -> torch.Tensor:
        """Return y for x = `hidden_states` and x_block = `block_input`, all of shape (batch, sequence, hidden)."""
        branch = hidden_states if input_norm is None else input_norm(hidden_states)
        if self.has_gain:
            branch = branch * self.gain
        branch = sublayer(branch)
        if branch_norm is not None:
            branch = branch_norm(branch)
        if layer_scale is not None:
            branch = layer_scale(branch)
        if drop_path is not None:
            branch = drop_path(branch)
        stream = hidden_states * self.residual_scale if self.has_residual_scale else hidden_states
        if gate is not None and self.gate_position == "stream":
            stream = gate(stream)
        output = stream + branch
        if self.has_bypass:
            output = output + block_input * self.bypass
        if output_norm is not None:
            output = output_norm(output)
        if gate is not None and self.gate_position == "output":
            output = gate(output)
        return output

    def extra_repr(self) -> str:
        """Show the scalars that are not at their neutral value."""
        parts = [f"gain={self.gain:.4g}"] * self.has_gain + [f"bypass={self.bypass:.4g}"] * self.has_bypass
        if isinstance(self.residual_scale, float) and self.has_residual_scale:
            parts.append(f"residual_scale={self.residual_scale:.4g}")
        return ", ".join(parts)


class ActivationGate(nn.Module):
    """Gradient-preserving activation scaling: h - silu(g) * stopgrad(h), with g a learned scalar that starts at 0.

    Scales the activation down without scaling the gradient that flows back through it (GPAS, arXiv 2506.22049).
    """

    def __init__(self) -> None:
        super().__init__()
        # of shape (1,), not (): FSDP2 cannot shard a scalar
        self.weight = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        """Set the gate back to 0, where it is the identity."""
        nn.init.zeros_(self.weight)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the scaled activation, of the same shape."""
        return hidden_states - F.silu(self.weight) * hidden_states.detach()


class LayerScale(nn.Module):
    """A learned factor of each channel: gamma * x (Touvron et al. 2021, arXiv 2103.17239).

    Args:
        width: channels; x is of shape (..., width).
        initial_value: of every gamma.
    """

    def __init__(self, width: int, initial_value: float) -> None:
        super().__init__()
        self.initial_value = initial_value
        self.gamma = nn.Parameter(torch.full((width,), initial_value))

    def reset_parameters(self) -> None:
        """Set gamma to its initial value."""
        nn.init.constant_(self.gamma, self.initial_value)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the scaled tensor, of the same shape."""
        return hidden_states * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): while it trains, a branch is 0 for some of the rows.

        D(x) = x * b / (1 - p), with b of each row 0 with probability p, else 1

    At evaluation it is the identity. Unlike the ones of libraries it does not branch on p, which would compile each
    block anew.

    Args:
        probability: p, at least 0 and below 1.

    Raises:
        PlacementError: p is outside of that.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise PlacementError(f"a path is dropped with a probability of at least 0 and below 1, not {probability}")
        self.keep = 1.0 - float(probability)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return D(x) for x of shape (batch, ...)."""
        if not self.training:
            return hidden_states
        shape = (hidden_states.shape[0], *(1,) * (hidden_states.ndim - 1))
        drawn = torch.rand(shape, device=hidden_states.device) < self.keep
        return hidden_states * (drawn / self.keep).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"probability={1 - self.keep:.4g}"


class PlacedBlock(nn.Module):
    """A block whose norms stand where a `BlockPlan` says. Inherit from it, or use `Block`.

    Call `add_placement` in the constructor and `run_sublayers` in the forward. The norms become attributes of the block
    with the names that stock architectures (Llama, OLMo 2, Gemma 2) and the published code use:

        attention     N_in              input_layernorm
        attention     N_branch, N_out   post_attention_layernorm
        feed-forward  N_in              post_attention_layernorm if attention has no N_branch and no N_out,
                                        else pre_feedforward_layernorm
        feed-forward  N_branch, N_out   post_feedforward_layernorm

    In a sublayer with both N_branch and N_out, N_out ends in `_residual_layernorm` instead.
    """

    norm_names: ClassVar[Mapping[tuple[str, str], str]] = {}
    """Other names, by sublayer and part, of an architecture that calls its norms otherwise."""

    attention_residual: Residual
    feed_forward_residual: Residual

    def add_placement(self, plan: BlockPlan, norm: NormFactory, hidden_size: int) -> None:
        """Create the norms, the gate and the two residual connections that the plan asks for."""
        self.plan = plan
        self.part_names = {"attention": {}, "feed_forward": {}}
        for sublayer_name, part, attribute, norm_plan in self.norm_attributes(plan):
            self.add_module(attribute, norm(norm_plan))
            self.part_names[sublayer_name][part] = attribute
        gated = [name for name in self.part_names if getattr(plan, name).gate is not None]
        if gated:
            self.activation_gate = ActivationGate()
            for name in gated:
                self.part_names[name]["gate"] = "activation_gate"
        self.attention_residual = Residual(plan.attention, hidden_size)
        self.feed_forward_residual = Residual(plan.feed_forward, hidden_size)

    def add_branch_end(self, hidden_size: int, *, layer_scale: float | None = None, drop_path: float = 0.0) -> None:
        """Let both branches end in what the model has beside its norms; call it after `add_placement`.

        Args:
            hidden_size: of the stream.
            layer_scale: initial value of `attention_layer_scale` and `feed_forward_layer_scale`; None: there is none.
            drop_path: probability with which a branch is dropped while it trains.

        Raises:
            PlacementError: that is no probability below 1.
        """
        for name, parts in self.part_names.items():
            ends: dict[str, nn.Module] = {}
            if layer_scale is not None:
                ends["layer_scale"] = LayerScale(hidden_size, layer_scale)
            if drop_path:
                ends["drop_path"] = DropPath(drop_path)
            for part, module in ends.items():
                self.add_module(f"{name}_{part}", module)
                parts[part] = f"{name}_{part}"

    @classmethod
    def norm_attributes(cls, plan: BlockPlan) -> list[tuple[str, str, str, NormPlan]]:
        """Return (sublayer, part of the formula, attribute, plan) of every norm that a block of this class would have.

        Norms inside the attention are not among them.
        """
        return [
            (sublayer, part, cls.norm_names.get((sublayer, part), default), norm)
            for sublayer, part, default, norm in block_norms(plan)
        ]

    def run_sublayers(self, hidden_states: torch.Tensor, attention: Sublayer, feed_forward: Sublayer) -> torch.Tensor:
        """Return the block's output for its input (batch, sequence, hidden)."""
        block_input = hidden_states
        hidden_states = self.attention_residual(
            hidden_states, attention, block_input=block_input, **self._parts("attention")
        )
        return self.feed_forward_residual(
            hidden_states, feed_forward, block_input=block_input, **self._parts("feed_forward")
        )

    def _parts(self, sublayer_name: str) -> dict[str, nn.Module]:
        # looked up by name at every call, so that a norm that somebody replaces on the block is the one that runs
        return {part: getattr(self, attribute) for part, attribute in self.part_names[sublayer_name].items()}


class Block(PlacedBlock):
    """A placed block around anyone's own modules: `attention` and `feed_forward` map (batch, sequence, hidden) to the
    same shape. Keyword arguments of the call go to the attention.

    Examples:
        >>> plan = Placement.parse("mix(alpha=0.5)").plan(2)
        >>> norm = norm_factory(hidden_size=64)
        >>> blocks = [Block(block, attention(), mlp(), norm, hidden_size=64) for block in plan.blocks]
    """

    def __init__(
        self, plan: BlockPlan, attention: nn.Module, feed_forward: nn.Module, norm: NormFactory, hidden_size: int
    ) -> None:
        super().__init__()
        if plan.attention.qkv_norm is not None:
            raise PlacementError(
                "this placement normalises queries and keys inside the attention, which Block cannot reach: build the "
                "norms into the attention module and inherit from PlacedBlock"
            )
        self.attention = attention
        self.feed_forward = feed_forward
        self.add_placement(plan, norm, hidden_size)

    def forward(self, hidden_states: torch.Tensor, **attention_kwargs: object) -> torch.Tensor:
        """Return the block's output for its input (batch, sequence, hidden)."""
        return self.run_sublayers(hidden_states, lambda x: self.attention(x, **attention_kwargs), self.feed_forward)
