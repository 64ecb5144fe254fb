"""What the runs of a comparison share, in words, for its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixln.report import RunResult
from mixln.studies.compared_kinds import Baseline, ComparedKind
from mixln.tasks.kinds import AnyRecipe
from mixln.training import Precision


def shared_facts(
    compared: ComparedKind,
    recipe: AnyRecipe,
    runs: Sequence[RunResult],
    data: Any,
    precision: Precision,
    baseline: Baseline,
) -> dict[str, str]:
    """Return what all runs of a comparison share, as label and text, in the order to print it.

    Args:
        compared: the kind of the recipe.
        recipe: of all runs, but for what is compared.
        runs: their results.
        data: that they were trained on.
        precision: of all of them.
        baseline: what a model must beat.
    """
    model, optimizer = recipe.model, recipe.optimizer
    stds = sorted({run.embedding_std for run in runs})
    parameters = sorted({f"{run.num_parameters / 1e6:.3f}M" for run in runs}, key=lambda text: float(text[:-1]))
    return {
        "Model": f"{compared.kind.model_in_words(recipe)}, {' or '.join(parameters)} parameters",
        "Initial standard deviation": (
            f"{model.initializer_range:g}, embedding {', '.join(f'{std:.4g}' for std in stds)}"
        ),
        **compared.data_facts(recipe, data),
        "Budget": compared.budget(recipe, data),
        "Optimiser": (
            f"{optimizer.name}, warmup {recipe.warmup_steps} steps, cosine to "
            f"{100 * optimizer.final_learning_rate_fraction:.3g}% of the peak, gradient norm "
            + (f"clipped at {optimizer.max_grad_norm:g}" if optimizer.max_grad_norm else "not clipped")
        ),
        "Precision": (
            f"{'float32' if precision.autocast_dtype is None else 'bfloat16 autocast, float32 weights'}: "
            f"{precision.reason}"
        ),
        "Depth measures": compared.measured_in_words(data),
        **compared.constant_facts(baseline),
    }
