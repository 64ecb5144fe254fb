"""`mixln train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from mixln.chosen_device import on_device
from mixln.commands.arguments import claim_output
from mixln.commands.fields import RunFields
from mixln.commands.settings import settled_recipe
from mixln.commands.start import announce_recipe
from mixln.interruption import keeping
from mixln.signatures import checked_arguments
from mixln.tasks.image_config import ImageTrainingConfig
from mixln.tasks.kinds import kind_of
from mixln.tasks.recipe import Recipe

if TYPE_CHECKING:
    from mixln.training import TrainedModel


@checked_arguments
@on_device
def train(
    *,
    out: str | Path = "runs/train",
    recipe: Recipe | ImageTrainingConfig | str | Path = "nano",
    device: str | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
    **changes: Unpack[RunFields],
) -> TrainedModel:
    """Train one model from a recipe, a language model on text or a ViT on images, and save it as a Hugging Face folder
    with its tokenizer or image processor. An interrupted run goes on when the same command is run again.

    Example:
        mixln train --placement 'mix(alpha=0.25)' --steps 1000 --out runs/mix
        mixln train --recipe vit-nano-cifar --images cifar10.tar.xz --out runs/vit

    Args:
        out: The folder of the run.
        recipe: A recipe, the name of a shipped one, or a YAML file.
        device: Such as cpu, cuda or cuda:1. Default: the GPU, if any.
        cache: The folder for tokenised data. Default: ~/.cache/mixln.
        progress: Show on standard error how far it is.
        **changes: Fields of the recipe that differ, such as `placement="mix(alpha=0.25)"`, `steps=1000`, `text`,
            `images`, `learning_rate`, `hidden_size`.

    Returns:
        The run: its model, losses and folder; its table has a row for each step.

    Raises:
        InputError: the recipe cannot be used, or the folder holds another run.
        TrainingDivergedError: the loss is no number any more, and the recipe says to stop then.
    """
    del device  # `on_device` has chosen it
    recipe, out = settled_recipe(recipe, changes), Path(out)
    announce_recipe(recipe, out, cache)
    from mixln.progress import TrainingProgress
    from mixln.training import train as run
    from mixln.training.saved_checkpoint import describe_kept

    kind = kind_of(recipe)
    kind.check(recipe)
    claim_output(out)
    with (
        keeping(lambda: describe_kept(out)),
        TrainingProgress(recipe.last_step, shown=progress, unit=kind.unit) as shown,
        kind.prepare(recipe, cache, shown.report, shown.stage) as data,
    ):
        shown.start_run(0, recipe.model.placement)
        return run(kind.task(recipe, data), out, shown.step)
