"""Every scheme and modifier: one short registered function each, with its title, formula and source.

In the formulas, x is the sublayer's input, y its output, F the sublayer (attention, then feed-forward), N a norm, and
l = 1 .. L the depth. To add a scheme, write such a function: tests, command line, recipes and docs read the registry.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Annotated

from mixln.placement.plan import (
    BLOCK_ROLES,
    NORM,
    BlockPlan,
    InitRule,
    NormPlan,
    PlacementError,
    PlacementWarning,
    QKVNormPlan,
    Role,
    StackPlan,
    SublayerPlan,
)
from mixln.placement.registry import Interval, register_modifier, register_scheme


def _both(sublayer: SublayerPlan) -> BlockPlan:
    return BlockPlan(attention=sublayer, feed_forward=sublayer)


@register_scheme("pre", title="Pre-LN", formula="y = x + F(N(x))", source="Xiong et al. 2020; Mix-LN, eq. 2")
def pre(depth: int, num_layers: int) -> BlockPlan:
    return _both(SublayerPlan(input_norm=NORM))


@register_scheme("post", title="Post-LN", formula="y = N(x + F(x))", source="Vaswani et al. 2017; Mix-LN, eq. 1")
def post(depth: int, num_layers: int) -> BlockPlan:
    return _both(SublayerPlan(output_norm=NORM))


@register_scheme(
    "mix",
    title="Mix-LN",
    formula="Post-LN for l <= floor(alpha * L), Pre-LN above",
    source="Mix-LN, section 3",
    default_options={"alpha": 0.25},
)
def mix(
    depth: int,
    num_layers: int,
    *,
    alpha: Annotated[float | None, Interval(0, 1)] = None,
    post_layers: Annotated[int | None, Interval(0)] = None,
) -> BlockPlan:
    """`post_layers` gives the number of Post-LN layers directly.

    Raises:
        PlacementError: both options are given, or there are more Post-LN layers than layers.
    """
    if (alpha is None) == (post_layers is None):
        raise PlacementError("mix: give either alpha or post_layers, not both")
    # alpha = k/L must give k, although k/L * L can come out just below k in binary (0.29 * 100)
    count = post_layers if alpha is None else math.floor(alpha * num_layers + 1e-9)
    assert count is not None
    if count > num_layers:
        raise PlacementError(f"mix: post_layers={count}, but the model has {num_layers} layers")
    return post(depth, num_layers) if depth <= count else pre(depth, num_layers)


@register_scheme("lns", title="LayerNorm Scaling", formula="y = x + F(N(x) / sqrt(l))", source="Curse of Depth, eq. 9")
def lns(depth: int, num_layers: int) -> BlockPlan:
    return _both(SublayerPlan(input_norm=NORM, gain=1 / math.sqrt(depth)))


@register_scheme(
    "deepnorm",
    title="DeepNorm",
    formula="y = N(rho * x + F(x)), rho = (2L)^(1/4)",
    source="DeepNorm, figure 2, decoder-only",
)
def deepnorm(
    depth: int,
    num_layers: int,
    *,
    residual_scale: Annotated[float | None, Interval(0, open_below=True)] = None,
) -> BlockPlan:
    """Its init belongs to it: Xavier-normal, with gain (8L)^(-1/4) for v, o and all feed-forward matrices and 1 for q
    and k. `residual_scale` sets rho (published Mix-LN code has 8^0.5 = 2.828... for every L).
    """
    rho = (2 * num_layers) ** 0.25 if residual_scale is None else residual_scale
    sublayer = SublayerPlan(output_norm=NORM, residual_scale=rho)
    init: dict[Role, InitRule] = dict.fromkeys(BLOCK_ROLES, InitRule("xavier", (8 * num_layers) ** -0.25))
    init["query"] = init["key"] = InitRule("xavier")
    return BlockPlan(attention=sublayer, feed_forward=sublayer, init=init)


@register_scheme("sandwich", title="Sandwich-LN", formula="y = x + N'(F(N(x)))", source="Ding et al. 2021, CogView")
def sandwich(depth: int, num_layers: int) -> BlockPlan:
    return _both(SublayerPlan(input_norm=NORM, branch_norm=NORM))


@register_scheme(
    "b2t",
    title="B2T connection",
    formula="y = N(x + F(x)), and in the feed-forward y = N(x_block + x + F(x))",
    source="Takase et al. 2022",
)
def b2t(depth: int, num_layers: int) -> BlockPlan:
    """The block's input goes past all its norms but the last one."""
    return BlockPlan(attention=SublayerPlan(output_norm=NORM), feed_forward=SublayerPlan(output_norm=NORM, bypass=1.0))


@register_scheme(
    "peri",
    title="Peri-LN",
    formula="y = x + N'(F(N(x))), with a norm on the embedding output",
    source="Kim et al. 2025, arXiv 2502.02732",
    embedding_norm=NORM,
)
def peri(depth: int, num_layers: int) -> BlockPlan:
    return sandwich(depth, num_layers)


@register_scheme(
    "reordered", title="Reordered norm", formula="y = x + N(F(x))", source="OLMo 2: Walsh et al. 2025, arXiv 2501.00656"
)
def reordered(depth: int, num_layers: int) -> BlockPlan:
    """OLMo 2 itself is `reordered+qk_norm(per_head=false)`."""
    return _both(SublayerPlan(branch_norm=NORM))


@register_scheme(
    "hybrid",
    title="HybridNorm",
    formula="y = N(x + A(x)) with q, k, v normed per head, then z = y + FFN(y)",
    source="Zhuo et al. 2025, 2503.04598",
)
def hybrid(depth: int, num_layers: int, *, first_pre: bool = False) -> BlockPlan:
    """With Y = x + A(x) this is the paper's FFN(N(Y)) + N(Y). `first_pre` is HybridNorm*: the first block is Pre-LN in
    both sublayers, q, k and v normed as in the others.
    """
    heads = QKVNormPlan(("query", "key", "value"), per_head=True)
    if first_pre and depth == 1:
        return BlockPlan(SublayerPlan(input_norm=NORM, qkv_norm=heads), SublayerPlan(input_norm=NORM))
    return BlockPlan(attention=SublayerPlan(output_norm=NORM, qkv_norm=heads), feed_forward=SublayerPlan())


@register_scheme(
    "groupnorm",
    title="Group-LN",
    formula="Pre-LN, y = x + F(N_g(x)), N_g norming each token's channels in g groups",
    source="Mix-LN, table 6",
    default_options={"groups": 8},
)
def groupnorm(depth: int, num_layers: int, *, groups: Annotated[int, Interval(1)]) -> BlockPlan:
    """The final norm is over all channels. (The authors' own code took PyTorch's GroupNorm over all tokens of a row at
    once, later ones included, which a causal model may not do.)
    """
    return _both(SublayerPlan(input_norm=NormPlan(groups=groups)))


@register_scheme(
    "admin",
    title="Admin",
    formula="y = N(omega * x + F(x)) with omega learned, one factor per channel",
    source="Liu et al. 2020, 2004.08249",
)
def admin(depth: int, num_layers: int) -> BlockPlan:
    """omega begins where a profiling pass puts it (`profile_residual_scales`): omega_1 = 1 and then, sublayer by
    sublayer, omega_(i+1) = sqrt(Var(omega_i * x_i) + Var(F_i)), the same in every channel.
    """
    return _both(SublayerPlan(output_norm=NORM, residual_scale="learned"))


@register_scheme(
    "none",
    title="No norm anywhere, not even before the head",
    formula="y = x + F(x)",
    source="LN-free: Baroni et al. 2025, arXiv 2507.02559",
    final_norm=None,
    head_bias=True,
)
def none(depth: int, num_layers: int) -> BlockPlan:
    """The head has a bias, 0 at first: that of a final LayerNorm, once it is folded into the head."""
    return _both(SublayerPlan())


def _with_pointwise_norms(plan: StackPlan, kind: str, slope: float, attention_slope: float | None) -> StackPlan:
    """Return the plan with norms of a kind in place of all of its norms, in attention maybe with another slope."""
    elsewhere = NormPlan(kind=kind, slope=slope)
    attention = elsewhere if attention_slope is None else NormPlan(kind=kind, slope=attention_slope)
    replaced = plan.norms
    if not replaced or replaced != {NORM}:
        what = "there is none" if not replaced else "others than the architecture's own are among them"
        warnings.warn(
            f"{kind} takes the place of every norm of the placement, and {what}",
            PlacementWarning,
            stacklevel=4,
        )

    def changed(sublayer: SublayerPlan, norm: NormPlan) -> SublayerPlan:
        parts = ("input_norm", "branch_norm", "output_norm")
        norms = {part: norm for part in parts if getattr(sublayer, part) is not None}
        qkv_norm = None if sublayer.qkv_norm is None else replace(sublayer.qkv_norm, norm=norm)
        return replace(sublayer, **norms, qkv_norm=qkv_norm)

    return replace(
        plan,
        blocks=tuple(
            replace(
                block,
                attention=changed(block.attention, attention),
                feed_forward=changed(block.feed_forward, elsewhere),
            )
            for block in plan.blocks
        ),
        embedding_norm=None if plan.embedding_norm is None else elsewhere,
        final_norm=None if plan.final_norm is None else elsewhere,
    )


@register_modifier(
    "scaled_init",
    title="Scaled init",
    formula="std sqrt(2/(5d)), for o and down projections / sqrt(2L)",
    source="Scao et al. 2022; Takase et al. 2023",
)
def scaled_init(plan: StackPlan) -> StackPlan:
    """Divided by sqrt(2L) are the matrices that write to an unnormalised stream: the attention's output and the
    feed-forward's down projection in sublayers without N_out (Scao et al.); sqrt(2/(5d)) is the small init of Takase et
    al. It replaces an init that the scheme brings along.
    """
    if any(sublayer.gain != 1 for block in plan.blocks for sublayer in (block.attention, block.feed_forward)):
        warnings.warn(
            "scaled_init takes away the effect of LayerNorm Scaling, which already keeps the variance of deep layers "
            "down (Curse of Depth, section 4): train with one of the two",
            PlacementWarning,
            stacklevel=3,
        )

    def block_init(block: BlockPlan) -> dict[Role, InitRule]:
        writers: list[tuple[Role, SublayerPlan]] = [
            ("attention_output", block.attention),
            ("down", block.feed_forward),
        ]
        rule = InitRule("small", (2 * plan.num_layers) ** -0.5)
        return {role: rule for role, sublayer in writers if sublayer.output_norm is None}

    blocks = tuple(replace(block, init=block_init(block)) for block in plan.blocks)
    return replace(plan, blocks=blocks, init=InitRule("small"))


@register_modifier(
    "scaled_embed",
    title="Scaled embedding",
    formula="the embedding's output times sqrt(d)",
    source="Takase et al. 2023, Scaled Embed",
)
def scaled_embed(plan: StackPlan) -> StackPlan:
    if plan.embedding_norm is not None:
        warnings.warn(
            "scaled_embed does nothing if there is a norm on the embedding, because the norm removes the factor",
            PlacementWarning,
            stacklevel=3,
        )
    return replace(plan, embedding_scale="sqrt_hidden_size")


@register_modifier(
    "qk_norm",
    title="QK norm",
    formula="queries and keys normed before rotary positions and scores",
    source="after Henry et al. 2020, arXiv 2010.04245",
)
def qk_norm(plan: StackPlan, *, per_head: bool = True) -> StackPlan:
    """Besides what the scheme norms itself. Per head, one gain for all heads, as in Qwen3; `per_head=false` is over the
    full width, as in OLMo 2 (Walsh et al. 2025, arXiv 2501.00656).
    """

    def normed(block: BlockPlan) -> BlockPlan:
        own = block.attention.qkv_norm
        projections = own.projections if own is not None and "value" in own.projections else ("query", "key")
        return replace(block, attention=replace(block.attention, qkv_norm=QKVNormPlan(projections, per_head=per_head)))

    return replace(plan, blocks=tuple(map(normed, plan.blocks)))


@register_modifier(
    "gpas",
    title="GPAS",
    formula="G(h) = h - silu(g) * stopgrad(h), with g learned, 0 at first",
    source="Chen et al. 2025, arXiv 2506.22049",
)
def gpas(plan: StackPlan) -> StackPlan:
    """Gradient-preserving activation scaling. One g per block, shared by its sublayers: y = G(x + F(...)) in those
    without N_out, y = N_out(G(rho * x) + F(...)) in those with one. At first G is the identity, so that a trained model
    to which it is added keeps its function.
    """

    def gated(sublayer: SublayerPlan) -> SublayerPlan:
        return replace(sublayer, gate="output" if sublayer.output_norm is None else "stream")

    def gated_block(block: BlockPlan) -> BlockPlan:
        return replace(block, attention=gated(block.attention), feed_forward=gated(block.feed_forward))

    return replace(plan, blocks=tuple(map(gated_block, plan.blocks)))


@register_modifier(
    "dyt",
    title="Dynamic Tanh in place of every norm",
    formula="w * tanh(alpha * x) + b",
    source="Zhu et al. 2025, arXiv 2503.10622",
)
def dyt(
    plan: StackPlan,
    *,
    slope: Annotated[float, Interval(0, open_below=True)] = 0.5,
    attention_slope: Annotated[float | None, Interval(0, open_below=True)] = None,
) -> StackPlan:
    """`slope` is alpha's initial value, `attention_slope` that of the attention's norms if it is another. The paper has
    0.5 outside language models, and for LLaMA (table 11) 0.2 and 0.8 at 7B; its language models also scale the
    embedding by sqrt(d), here `scaled_embed`.
    """
    return _with_pointwise_norms(plan, "dyt", slope, attention_slope)


@register_modifier(
    "derf",
    title="Dynamic erf in place of every norm",
    formula="w * erf(alpha * x + s) + b",
    source="Chen et al. 2025, arXiv 2512.10938",
)
def derf(
    plan: StackPlan,
    *,
    slope: Annotated[float, Interval(0, open_below=True)] = 0.5,
    attention_slope: Annotated[float | None, Interval(0, open_below=True)] = None,
) -> StackPlan:
    """`slope` is alpha's initial value, `attention_slope` that of the attention's norms if it is another; s starts at
    0. The paper's language models also scale the embedding by sqrt(d), here `scaled_embed`.
    """
    return _with_pointwise_norms(plan, "derf", slope, attention_slope)
