"""`mixln train`."""

from __future__ import annotations

from pathlib import Path

from mixln.commands.arguments import claim_output
from mixln.tasks.recipe import Recipe


def train(*, out: Path = Path("runs/train"), recipe: Recipe, cache: Path | None = None) -> None:
    """Train one model from a recipe and save it as a Hugging Face folder with its tokenizer. An interrupted run goes on
    when the same command is run again.

    Example:
        mixln train --recipe nano --model.placement 'mix(alpha=0.25)' --steps 1000 --out runs/mix

    Args:
        out: folder of the run.
        cache: folder for tokenised data; default: ~/.cache/mixln.
    """
    from mixln.data.prepare import prepare_data
    from mixln.device import is_main_process
    from mixln.progress import TrainingProgress
    from mixln.tasks.build import check_model
    from mixln.tasks.pretraining import Pretraining
    from mixln.training import MODEL_FOLDER
    from mixln.training import train as train_model

    check_model(recipe)
    claim_output(out)
    with TrainingProgress(recipe.last_step) as progress:
        data = prepare_data(recipe.data, cache, progress.report)
        progress.start_run(0, recipe.model.placement)
        trained = train_model(Pretraining(recipe, data), out, progress.step)
    if not is_main_process():
        return
    validation = trained.validation
    print(f"validation loss {validation.mean:.4f}, perplexity {validation.perplexity:.2f}")
    print(f"precision: {trained.precision}")
    print(f"model: {out / MODEL_FOLDER}")
