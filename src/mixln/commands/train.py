"""`mixln train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from mixln.chosen_device import on_device
from mixln.commands.arguments import claim_output
from mixln.commands.settings import RunFields, settled_recipe
from mixln.commands.start import announce_recipe
from mixln.interruption import keeping
from mixln.signatures import checked_arguments
from mixln.tasks.recipe import Recipe

if TYPE_CHECKING:
    from mixln.training import TrainedModel


@checked_arguments
@on_device
def train(
    *,
    out: str | Path = "runs/train",
    recipe: Recipe | str | Path = "nano",
    device: str | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
    **changes: Unpack[RunFields],
) -> TrainedModel:
    """Train one model from a recipe and save it as a Hugging Face folder with its tokenizer. An interrupted run goes on
    when the same command is run again.

    Example:
        mixln train --placement 'mix(alpha=0.25)' --steps 1000 --out runs/mix

    Args:
        out: The folder of the run.
        recipe: A recipe, the name of a shipped one, or a YAML file.
        device: Such as cpu, cuda or cuda:1. Default: the GPU, if any.
        cache: The folder for tokenised data. Default: ~/.cache/mixln.
        progress: Show on standard error how far it is.
        **changes: Fields of the recipe that differ, such as `placement="mix(alpha=0.25)"`, `steps=1000`, `text`,
            `learning_rate`, `hidden_size`.

    Returns:
        The run: its model, losses and folder; its table has a row for each step.

    Raises:
        InputError: the recipe cannot be used, or the folder holds another run.
        TrainingDivergedError: the loss is no number any more, and the recipe says to stop then.
    """
    del device  # `on_device` has chosen it
    recipe, out = settled_recipe(recipe, changes), Path(out)
    announce_recipe(recipe, out, cache)
    from mixln.data.prepare import prepare_data
    from mixln.progress import TrainingProgress
    from mixln.tasks.build import check_model
    from mixln.tasks.pretraining import pretrain
    from mixln.training.saved_checkpoint import describe_kept

    check_model(recipe)
    claim_output(out)
    with keeping(lambda: describe_kept(out)), TrainingProgress(recipe.last_step, shown=progress) as shown:
        data = prepare_data(recipe.data, cache, shown.report, report_stage=shown.stage)
        shown.start_run(0, recipe.model.placement)
        return pretrain(recipe, data, out, shown.step)
