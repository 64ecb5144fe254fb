"""What is known to train and what to diverge: warnings for a recipe outside the published range, each with its source.

Decided from the plan of the stack, never from a scheme's name. A **Post-LN block** is one with a norm on the residual
sum (N_out) in either sublayer; it is a **plain** one if both sublayers have it and nothing else holds the sum back
(rho = 1, no bypass), that is y = N(x + F(x)).
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from mixln.data.config import DataConfig
from mixln.models import PlacedConfig
from mixln.placement import BlockPlan, StackPlan
from mixln.tasks.build import model_config
from mixln.tasks.recipe import Recipe

PUBLISHED_VOCABULARY = 32_000

NAMED_VOCABULARIES = {
    "Qwen/Qwen2.5-0.5B": 151_936,
    "allenai/OLMo-1B-hf": 50_304,
    "allenai/OLMo-7B-hf": 50_304,
}
"""Rows of the published embeddings of the shipped recipes' other tokenizers, which are not loaded for this."""

SMALLEST_PUBLISHED = 60_000_000
"""Published sizes as lower bounds of their class: "71M" has 70.6M parameters, "250M" 247M, "1B" 1.34B, "7B" 6.74B."""
_TRIED_AT_3E3 = 1_000_000
"""In 0.7M parameters (width 64) Post-LN trained at 3e-3 with two seeds: the recipe pico."""
SIZE_250M = 240_000_000
SIZE_1B = 1_000_000_000
SIZE_7B = 6_000_000_000

_MIX_LN = "Mix-LN (Li, Yin, Liu 2024)"


def stability_warnings(recipe: Recipe) -> list[str]:
    """Return a sentence for everything in which the recipe leaves what is known to train stably; none: empty.

    The rules, for stacks with Post-LN blocks:

    - warmup below 10 % of the steps (Mix-LN, table 9; Xiong et al. 2020);
    - a peak learning rate above the published 1e-3, from 1B parameters on 5e-4 (Mix-LN, table 9); below the smallest
      published size only for plain Post-LN throughout, since there higher rates were measured to train otherwise;
    - plain Post-LN throughout from 250M parameters on, DeepNorm's residual scaling throughout from 1B on: diverged
      (Mix-LN, perplexities by size);
    - more than half of the blocks Post-LN from 1B on (Mix-LN, alpha on 1B), more than 6.25 % from 7B on (Mix-LN,
      table 9).

    That scaled init takes away the effect of LayerNorm Scaling (Curse of Depth) is warned of by the placement itself.

    Raises:
        PlacementError, InputError: the recipe's model cannot be built.
    """
    plan = recipe_config(recipe).stack_plan
    if not any(_is_post(block) for block in plan.blocks):
        return []
    size = num_parameters(recipe)
    found = (_short_warmup(recipe), _high_learning_rate(recipe, plan, size), _too_much_post(recipe, plan, size))
    return [warning for warning in found if warning is not None]


def num_parameters(recipe: Recipe) -> int:
    """Number of the model's parameters, tied ones once; built on the meta device, so nothing is allocated.

    The vocabulary is that of `data.vocab_size`, or the published number for a named tokenizer.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(recipe_config(recipe))
    return sum(parameter.numel() for parameter in model.parameters())


def recipe_config(recipe: Recipe) -> PlacedConfig:
    """Return the model configuration of a recipe without its tokenizer."""
    return model_config(recipe.model, recipe.data.sequence_length, vocabulary_size(recipe.data))


def vocabulary_size(data: DataConfig) -> int:
    """Return the tokens of a recipe's vocabulary: `data.vocab_size`, or the published number for a named tokenizer."""
    if data.tokenizer is None:
        return data.vocab_size
    return NAMED_VOCABULARIES.get(data.tokenizer, PUBLISHED_VOCABULARY)


def _short_warmup(recipe: Recipe) -> str | None:
    needed = max(1, recipe.steps // 10)
    if recipe.warmup_steps >= needed:
        return None
    return (
        f"{recipe.model.placement} has Post-LN layers, which need a long warmup, but warms up for "
        f"{recipe.warmup_steps} of {recipe.steps} steps: their gradients near the output are large at initialisation "
        f"(Xiong et al. 2020, theorem 1), and all of {_MIX_LN}, table 9, warm up for 10 %. "
        f"Set optimizer.warmup_steps to {needed}, or null"
    )


def _high_learning_rate(recipe: Recipe, plan: StackPlan, size: int) -> str | None:
    rate, published = recipe.optimizer.learning_rate, 5e-4 if size >= SIZE_1B else 1e-3
    if rate <= published:
        return None
    if size >= SMALLEST_PUBLISHED:
        where = "1B and 7B" if size >= SIZE_1B else "71M to 250M"
        reason = (
            f"the peak for {where} parameters is {published:g} in {_MIX_LN}, table 9; this model has {_count(size)}"
        )
    elif size < _TRIED_AT_3E3 and rate <= 3e-3:
        return None
    elif all(_is_plain_post(block) for block in plan.blocks):
        reason = "at 2e-3 Post-LN did not train in 3.4M parameters either (docs/results/gutenberg.md: loss 6.67)"
    else:
        return None
    return (
        f"{recipe.model.placement} has Post-LN layers, and optimizer.learning_rate {rate:g} is above what they are "
        f"known to take: {reason}. Set it to {published:g}"
    )


def _too_much_post(recipe: Recipe, plan: StackPlan, size: int) -> str | None:
    what = f"{recipe.model.placement} at {_count(size)} parameters"
    if size >= SIZE_250M and all(_is_plain_post(block) for block in plan.blocks):
        return (
            f"{what} is Post-LN throughout, which diverged from 250M on ({_MIX_LN}, validation perplexity by size: "
            "1409 at 250M, 1412 at 1B; alpha on 1B: 1434 at alpha=1). Use mix(alpha=0.25), or mix(alpha=0.0625) from "
            "7B on"
        )
    if size >= SIZE_1B and all(_is_rescaled_post(block) for block in plan.blocks):
        return (
            f"{what} scales the residual of Post-LN throughout, as DeepNorm, which diverged at 1B ({_MIX_LN}, "
            "validation perplexity by size: 22.77 at 250M, 1411 at 1B). Use mix(alpha=0.25)"
        )
    share = sum(map(_is_post, plan.blocks)) / len(plan.blocks)
    if size >= SIZE_7B and share > 0.0625:
        return (
            f"{what} has {share:.4g} of its blocks Post-LN; 7B was trained with 0.0625 ({_MIX_LN}, table 9: alpha "
            "6.25 %, against 25 % for the smaller ones), and needed so small a share. Use mix(alpha=0.0625)"
        )
    if size >= SIZE_1B and share > 0.5:
        return (
            f"{what} has {share:.4g} of its blocks Post-LN; the largest share that trained at 1B is 0.5, and gained "
            f"nothing ({_MIX_LN}, alpha on 1B: perplexity 18.18 at alpha=0.25, 18.86 at 0.5, 18.65 at 0, 1434 at 1). "
            "Use mix(alpha=0.25)"
        )
    return None


def _is_post(block: BlockPlan) -> bool:
    return block.attention.output_norm is not None or block.feed_forward.output_norm is not None


def _is_plain_post(block: BlockPlan) -> bool:
    return all(
        sublayer.output_norm is not None and sublayer.residual_scale == 1 and sublayer.bypass == 0
        for sublayer in (block.attention, block.feed_forward)
    )


def _is_rescaled_post(block: BlockPlan) -> bool:
    return all(
        sublayer.output_norm is not None
        and isinstance(sublayer.residual_scale, (int, float))
        and sublayer.residual_scale > 1
        for sublayer in (block.attention, block.feed_forward)
    )


def _count(size: int) -> str:
    return f"{size / 1e9:.2f}B" if size >= 1e9 else f"{size / 1e6:.1f}M"
