"""`mixln train`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mixln.commands.arguments import Command, add_recipe, cache_folder, claim_output, command_parser, recipe_from
from mixln.data import prepare_data
from mixln.device import is_main_process
from mixln.progress import TrainingProgress
from mixln.training import MODEL_FOLDER, train


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln train`."""
    parser = command_parser(
        "Train one model from a recipe and save it as a Hugging Face folder with its tokenizer. An interrupted run "
        "goes on when the same command is run again.",
        "mixln train --recipe nano --model.placement 'mix(alpha=0.25)' --steps 1000 --out runs/mix",
    )
    parser.add_argument("--out", type=str, default="runs/train", help="folder of the run")
    add_recipe(parser)
    return parser


def run(given: Namespace, _command: str) -> int:
    """Run `mixln train`."""
    recipe = recipe_from(given, build_parser()).check()
    out = Path(given.out)
    claim_output(out)
    with TrainingProgress(recipe.last_step) as progress:
        data = prepare_data(recipe.data, cache_folder(given), progress.report)
        progress.start_run(0, recipe.model.placement)
        trained = train(recipe, data, out, progress.step)
    if not is_main_process():
        return 0
    validation = trained.validation
    print(f"validation loss {validation.mean:.4f}, perplexity {validation.perplexity:.2f}")
    print(f"model: {out / MODEL_FOLDER}")
    return 0


COMMAND = Command("train", "train one model from a recipe", build_parser, run)
