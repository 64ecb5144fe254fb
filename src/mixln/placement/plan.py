"""A placement of norms as plain data: the parts of one formula for every sublayer of every block.

Number the blocks l = 1 .. L. A block is an attention sublayer, then a feed-forward sublayer. Around each sublayer F

    y = P( N_out( bypass * x_block  +  S( rho * x )  +  N_branch( F( gain * N_in(x) ) ) ) )

with x the sublayer's input, x_block the block's input, and y the sublayer's output. An absent part is the identity;
an absent bypass is 0. `mixln.placement.residual.Residual` executes exactly this formula and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

Role = Literal[
    "embedding",
    "patch_embedding",
    "class_token",
    "position_embedding",
    "query",
    "key",
    "value",
    "attention_output",
    "gate",
    "up",
    "down",
    "head",
]
"""What a weight matrix does in a transformer. Initialisation is keyed on it, never on a parameter's name.

`embedding` is the table of tokens, `patch_embedding` the projection of an image's patches, `class_token` a learned
token that no input has (DeiT has a second, for distillation).
"""

CONTENT_ROLES: tuple[Role, ...] = ("embedding", "patch_embedding")
"""The roles of what turns a model's input into vectors; `embedding_std` is of these."""

SublayerName = Literal["attention", "feed_forward"]

SUBLAYERS: tuple[SublayerName, ...] = ("attention", "feed_forward")
"""The sublayers of a block, in the order in which they run."""

BLOCK_ROLES: tuple[Role, ...] = ("query", "key", "value", "attention_output", "gate", "up", "down")
"""The roles that occur once in every block; `up` and `gate` are the feed-forward's inputs, `down` its output."""


class PlacementError(ValueError):
    """An impossible placement: an unknown name, an option out of its range, a combination that makes no sense."""


class PlacementWarning(UserWarning):
    """A placement that works, but is known not to do what its user probably expects."""


@dataclass(frozen=True)
class NormPlan:
    """One norm of a block.

    Attributes:
        kind: `"architecture"` is the norm of the model around it (RMSNorm in Llama, LayerNorm in GPT-2). Any other kind
            is one of `mixln.placement.norms`; a norm factory raises an error if it cannot build it.
        groups: number of groups in which the channels of each token are normalised.
        slope: initial factor on the input of a pointwise kind; other kinds have none.
    """

    kind: str = "architecture"
    groups: int = 1
    slope: float = 1.0


NORM = NormPlan()
"""The norm of the architecture, over all channels: what nearly every scheme uses."""


@dataclass(frozen=True)
class QKVNormPlan:
    """Which projections of an attention sublayer are normalised, and over what: each head alone, or the full width.

    The norms stand right behind the projections, before rotary positions.
    """

    projections: tuple[Literal["query", "key", "value"], ...] = ("query", "key")
    per_head: bool = True
    norm: NormPlan = NORM


@dataclass(frozen=True)
class SublayerPlan:
    """The parts of the formula around one sublayer; the defaults are a bare residual connection, y = x + F(x).

    Attributes:
        input_norm: N_in, on the sublayer's input.
        gain: factor on the normalised input (LayerNorm Scaling: 1/sqrt(l)).
        branch_norm: N_branch, on the sublayer's output before it joins the stream.
        output_norm: N_out, on the stream after the addition.
        residual_scale: rho, factor on the stream before the addition; `"learned"` is one learned factor per channel,
            whose initial value comes from a profiling pass (`mixln.placement.profile_residual_scales`).
        bypass: factor on the block's input, which is added to the stream too (B2T).
        gate: where the block's learned gate acts: `"stream"` is S in the formula, `"output"` is P.
        qkv_norm: norms inside the attention, between the projections and the scores.
    """

    input_norm: NormPlan | None = None
    gain: float = 1.0
    branch_norm: NormPlan | None = None
    output_norm: NormPlan | None = None
    residual_scale: float | Literal["learned"] = 1.0
    bypass: float = 0.0
    gate: Literal["stream", "output"] | None = None
    qkv_norm: QKVNormPlan | None = None


@dataclass(frozen=True)
class InitRule:
    """How the matrices of one role are drawn: N(0, std^2) with std = gain * s.

    Attributes:
        distribution: s is for `"base"` the model's own standard deviation (0.02 unless it says otherwise), for
            `"small"` sqrt(2 / (5 d)) with d the hidden size, for `"xavier"` sqrt(2 / (fan_in + fan_out)).
        gain: the factor on s.
    """

    distribution: Literal["base", "small", "xavier"] = "base"
    gain: float = 1.0

    def standard_deviation(self, *, base_std: float, hidden_size: int, fan_in: int, fan_out: int) -> float:
        """Return gain * s for a matrix of this shape in a model of this width."""
        scale = {
            "base": base_std,
            "small": math.sqrt(2 / (5 * hidden_size)),
            "xavier": math.sqrt(2 / (fan_in + fan_out)),
        }
        return self.gain * scale[self.distribution]


@dataclass(frozen=True)
class BlockPlan:
    """One block: its two sublayers, and the init rules of its matrices that differ from the stack's rule."""

    attention: SublayerPlan
    feed_forward: SublayerPlan
    init: Mapping[Role, InitRule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "init", MappingProxyType(dict(self.init)))

    def sublayer(self, name: SublayerName) -> SublayerPlan:
        """Return the plan of one of the two sublayers."""
        return self.attention if name == "attention" else self.feed_forward

    def __reduce__(self) -> tuple[type[BlockPlan], tuple[SublayerPlan, SublayerPlan, dict[Role, InitRule]]]:
        # a read-only mapping cannot be copied or pickled as it is
        return BlockPlan, (self.attention, self.feed_forward, dict(self.init))


@dataclass(frozen=True)
class StackPlan:
    """A whole stack of blocks: what a placement plans for L layers.

    Attributes:
        blocks: the plans of the blocks, first to last.
        embedding_scale: factor on the embedding's output; `"sqrt_hidden_size"` is sqrt(d).
        embedding_norm: norm on the (scaled) embedding output.
        final_norm: norm between the last block and the head.
        head_bias: whether the head adds a learned bias to the logits, which starts at 0.
        init: how a matrix is drawn if its block has no rule of its own for it.
        num_layers: L in the formulas. More than `len(blocks)` if blocks were removed from a trained stack.
    """

    blocks: tuple[BlockPlan, ...]
    num_layers: int
    embedding_scale: float | Literal["sqrt_hidden_size"] = 1.0
    embedding_norm: NormPlan | None = None
    final_norm: NormPlan | None = NORM
    head_bias: bool = False
    init: InitRule = InitRule()

    @property
    def norms(self) -> set[NormPlan]:
        """All norms of the stack, each once."""
        sublayers = [block.sublayer(name) for block in self.blocks for name in SUBLAYERS]
        around = [norm for one in sublayers for norm in (one.input_norm, one.branch_norm, one.output_norm)]
        inside = [one.qkv_norm.norm for one in sublayers if one.qkv_norm is not None]
        return {norm for norm in (*around, *inside, self.embedding_norm, self.final_norm) if norm is not None}

    def embedding_factor(self, hidden_size: int) -> float:
        """Return the number that the embedding's output is multiplied by in a model of this width."""
        return math.sqrt(hidden_size) if self.embedding_scale == "sqrt_hidden_size" else float(self.embedding_scale)

    def init_rule(self, role: Role, block: int | None = None) -> InitRule:
        """Return how a matrix of this role is drawn; `block` is its position in `blocks`, None outside the blocks."""
        return self.init if block is None else self.blocks[block].init.get(role, self.init)

    def same_function_as(self, other: StackPlan) -> bool:
        """Tell whether both stacks compute the same function of the same weights (init rules do not matter)."""
        return _without_init(self) == _without_init(other)


def _without_init(plan: StackPlan) -> StackPlan:
    # L too enters the function only through the numbers that the blocks already hold
    blocks = tuple(replace(block, init={}) for block in plan.blocks)
    return replace(plan, blocks=blocks, init=InitRule(), num_layers=len(blocks))
