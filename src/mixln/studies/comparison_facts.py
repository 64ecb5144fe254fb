"""What the runs of a comparison share, in words, for its report."""

from __future__ import annotations

from collections.abc import Sequence

from mixln.data import PreparedData
from mixln.report import Constants, RunResult
from mixln.tasks import Recipe
from mixln.training import Precision


def shared_facts(
    recipe: Recipe,
    runs: Sequence[RunResult],
    data: PreparedData,
    precision: Precision,
    constants: Constants,
    measured_rows: int,
) -> dict[str, str]:
    """Return what all runs of a comparison share, as label and text, in the order to print it.

    Args:
        recipe: of all runs, but for what is compared.
        runs: their results.
        data: that they were trained on.
        precision: of all of them.
        constants: what a model must beat.
        measured_rows: validation rows that the depth measures ran over.
    """
    model, optimizer, statistics = recipe.model, recipe.optimizer, data.statistics
    stds = sorted({run.embedding_std for run in runs})
    parameters = sorted({f"{run.num_parameters / 1e6:.3f}M" for run in runs}, key=lambda text: float(text[:-1]))
    return {
        "Model": (
            f"{model.architecture}, {model.num_hidden_layers} layers, hidden size {model.hidden_size}, "
            f"{' or '.join(parameters)} parameters"
        ),
        "Initial standard deviation": (
            f"{model.initializer_range:g}, embedding {', '.join(f'{std:.4g}' for std in stds)}"
        ),
        "Training data": (
            f"{recipe.data.corpus}: {statistics.train.documents:,} documents, {statistics.train.tokens:,} tokens"
        ),
        "Validation data": (
            f"{recipe.data.validation_corpus or 'split off by document'}: {statistics.validation.documents:,} "
            f"documents, {statistics.validation.tokens:,} tokens"
        ),
        "Tokenizer": f"{recipe.data.tokenizer or 'byte-level BPE'}, {len(data.tokenizer):,} tokens",
        "Budget": (
            f"{recipe.last_step:,} steps of {recipe.batch_size} x {recipe.data.sequence_length} = "
            f"{recipe.last_step * recipe.tokens_per_step:,} token slots a run"
        ),
        "Optimiser": (
            f"{optimizer.name}, warmup {recipe.warmup_steps} steps, cosine to "
            f"{optimizer.final_learning_rate_fraction:.0%} of the peak, gradient norm "
            + (f"clipped at {optimizer.max_grad_norm:g}" if optimizer.max_grad_norm else "not clipped")
        ),
        "Precision": (
            f"{'float32' if precision.autocast_dtype is None else 'bfloat16 autocast, float32 weights'}: "
            f"{precision.reason}"
        ),
        "Depth measures": (
            f"of the trained models, on the first {measured_rows} rows of the validation data; gradient "
            "norms of the models that training began with, on the first rows of the training data"
        ),
        "Token frequencies and pairs": (
            f"losses of {constants.token_frequencies:.4f} and {constants.token_pairs:.4f} nats per token on the "
            f"{constants.validation_tokens:,} predicted validation tokens, by counts of "
            f"{constants.counted_tokens:,} of {constants.train_tokens:,} predicted training tokens, with "
            "Witten-Bell smoothing (1991)"
        ),
    }
