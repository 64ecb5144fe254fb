"""The `mixln` command: each subcommand reads its arguments and makes one call into the package.

Exit status: 0 success, 1 training diverged, 2 bad input (one message on standard error, no traceback), 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import math
import os
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import transformers
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from mixln.data import prepare_data
from mixln.errors import InputError
from mixln.models.convert import save_converted
from mixln.models.generate import generate_text
from mixln.placement import Placement, PlacementError
from mixln.progress import TrainingProgress
from mixln.report import grid_table, summary_table, write_report
from mixln.studies import Job, compare, plan_jobs
from mixln.training import MODEL_FOLDER, Recipe, TrainingDivergedError, train
from mixln.training.recipes import find_recipe, list_recipes
from mixln.version import __version__

_QUICK_STEPS = 64

_MENDABLE = {
    errno.ENOSPC: "make room on that disk, and run the same command again",
    errno.EDQUOT: "make room in that quota, and run the same command again",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.EROFS: "choose a place that can be written",
    errno.ENOTDIR: "choose a folder",
    errno.ENAMETOOLONG: "choose a shorter path",
}
"""Errors of the operating system that the user can mend, and how."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        given = build_parser().parse_args(_with_recipe_files(arguments))
        return _COMMANDS[given.subcommand](given[given.subcommand], shlex.join(["mixln", *arguments]))
    except ArgumentError as error:
        # a message can quote a whole file that is no recipe
        reason = " ".join(str(error).split())[:300].rstrip(".")
        return _fail(f"{reason}. `mixln --help` and `mixln COMMAND --help` list what there is")
    except (InputError, PlacementError) as error:
        return _fail(str(error))
    except TrainingDivergedError as error:
        return _fail(str(error), status=1)
    except BrokenPipeError:
        # whoever read the output has enough of it; Python would complain once more when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UnicodeDecodeError as error:
        return _fail(f"a file that should be text is not UTF-8 ({error}). Give a text file")
    except OSError as error:
        mend = _MENDABLE.get(error.errno or 0, "see to it that this path is what the command takes it for")
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}. To mend it, {mend}")
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower():
            raise
        return _fail("not enough memory. Choose a smaller model, batch_size or micro_batch_size")
    except KeyboardInterrupt:
        return _fail("interrupted. Run the same command again to go on", status=130)


def build_parser() -> ArgumentParser:
    """Return the parser of the whole command line."""
    parser = ArgumentParser(
        prog="mixln",
        description="Train, compare and open transformers under any placement of layer normalisation.",
        exit_on_error=False,
    )
    parser.add_argument("--version", action="version", version=f"mixln {__version__}")
    commands = parser.add_subcommands(required=True, dest="subcommand")
    for build in (_compare_parser, _train_parser, _generate_parser, _convert_parser):
        name, subparser, summary = build()
        commands.add_subcommand(name, subparser, help=summary)
    return parser


def _with_recipe_files(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the names of shipped recipes after `--recipe` replaced by their files."""
    resolved: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before == "--recipe":
            argument = str(find_recipe(argument))
        elif argument.startswith("--recipe="):
            argument = f"--recipe={find_recipe(argument.removeprefix('--recipe='))}"
        resolved.append(argument)
    return resolved


def _parser(description: str, example: str) -> ArgumentParser:
    return ArgumentParser(
        description=description,
        epilog=f"example: {example}",
        exit_on_error=False,
    )


def _add_recipe(parser: ArgumentParser) -> None:
    shipped = ", ".join(list_recipes())
    parser.add_argument("--recipe", action="config", help=f"shipped recipe ({shipped}) or YAML file; default: nano")
    parser.add_argument("--corpus", type=str, default=None, help="short for --data.corpus")
    parser.add_argument("--validation-corpus", type=str, default=None, help="short for --data.validation_corpus")
    parser.add_argument("--embedding-std", type=float, default=None, help="short for --model.embedding_std")
    parser.add_class_arguments(Recipe, as_group=True)
    parser.add_argument("--cache", type=str, default=None, help="folder for tokenised data; default: ~/.cache/mixln")


def _recipe(given: Namespace, parser: ArgumentParser) -> Recipe:
    values = parser.instantiate(given)
    recipe = Recipe(**{field.name: values[field.name] for field in fields(Recipe)})
    data = {"corpus": given.corpus, "validation_corpus": given.validation_corpus}
    data = {name: value for name, value in data.items() if value is not None}
    if "" in data.values() or given.cache == "" or given.out == "":
        raise InputError("an option for a corpus or folder is empty: give a path, or leave the option out")
    model = {} if given.embedding_std is None else {"embedding_std": given.embedding_std}
    return replace(recipe, data=replace(recipe.data, **data), model=replace(recipe.model, **model))


def _compare_parser() -> tuple[str, ArgumentParser, str]:
    summary = "train several schemes on the same data and seeds; table, figures, HTML report"
    parser = _parser(
        "Train several placements under equal conditions and report loss and the use of depth. Finished runs are kept: "
        "the same command goes on where it was interrupted.",
        "mixln compare --schemes pre mix 'mix(alpha=0.5)' --seeds 0 1 2 --tokens 1000000 --out runs/alpha",
    )
    parser.add_argument(
        "--schemes", nargs="+", type=str, default=["pre", "post", "mix", "lns"], help="placements to compare"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=None, help="one run of every scheme for each; default: the recipe's"
    )
    parser.add_argument(
        "--learning-rates",
        nargs="+",
        type=float,
        default=None,
        help="grid of peak learning rates; each scheme is judged at its own best; default: the recipe's",
    )
    parser.add_argument(
        "--baseline", type=str, default=None, help="the scheme that differences are taken to; default: pre, if compared"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=None,
        help=f"token slots to train each run on; sets --steps, which is {_QUICK_STEPS} without a recipe",
    )
    parser.add_argument("--out", type=str, default="runs/compare", help="folder for runs and report")
    _add_recipe(parser)
    # so that without arguments it ends within minutes on two cores
    parser.set_defaults(steps=_QUICK_STEPS)
    return "compare", parser, summary


def _train_parser() -> tuple[str, ArgumentParser, str]:
    summary = "train one model from a recipe"
    parser = _parser(
        "Train one model from a recipe and save it as a Hugging Face folder with its tokenizer. An interrupted run "
        "goes on when the same command is run again.",
        "mixln train --recipe nano --model.placement 'mix(alpha=0.25)' --steps 1000 --out runs/mix",
    )
    parser.add_argument("--out", type=str, default="runs/train", help="folder of the run")
    _add_recipe(parser)
    return "train", parser, summary


def _generate_parser() -> tuple[str, ArgumentParser, str]:
    summary = "text from a checkpoint"
    parser = _parser(
        "Continue a text with a trained model.", 'mixln generate runs/train/model "The module" --max-new-tokens 100'
    )
    parser.add_argument("model", type=str, help="Hugging Face folder, or name on the hub")
    parser.add_argument("text", type=str, help="what to continue")
    parser.add_argument("--max-new-tokens", type=int, default=100, help="tokens to generate at most")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token")
    parser.add_argument("--top-p", type=float, default=0.95, help="sample from the likeliest tokens of this total")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    return "generate", parser, summary


def _convert_parser() -> tuple[str, ArgumentParser, str]:
    summary = "import a checkpoint of the published training code"
    parser = _parser(
        "Read a checkpoint folder of the published Mix-LN / LayerNorm Scaling training code, whose config does not say "
        "how its norms are placed, and write one that AutoModelForCausalLM opens.",
        "mixln convert checkpoints/model_10001 converted --placement 'mix(post_layers=3)'",
    )
    parser.add_argument("source", type=str, help="folder with config.json and the weights")
    parser.add_argument("out", type=str, help="folder to write; must not exist or be empty")
    parser.add_argument("--placement", type=str, required=True, help="the placement that it was trained with")
    return "convert", parser, summary


def _run_compare(given: Namespace, command: str) -> int:
    _, parser, _ = _compare_parser()
    recipe = _recipe(given, parser)
    if given.tokens is not None:
        if given.tokens < 1:
            raise InputError(f"--tokens must be at least 1, not {given.tokens}")
        recipe = replace(recipe, steps=math.ceil(given.tokens / max(1, recipe.tokens_per_step)))
    out, seeds = Path(given.out), [recipe.seed] if given.seeds is None else given.seeds
    # everything that can be wrong with the request is found before any work is done
    jobs = plan_jobs(recipe, given.schemes, "", out, seeds, given.learning_rates)
    baseline = str(Placement.parse(given.baseline or "pre"))
    if given.baseline is not None and baseline not in {job.recipe.model.placement for job in jobs}:
        raise InputError(f"--baseline {given.baseline} is not among the --schemes: add it, or choose one of them")
    claim_output(out)
    with TrainingProgress(recipe.last_step, len(jobs)) as progress:
        data = prepare_data(recipe.data, _cache(given), progress.report)

        def report_run(number: int, count: int, job: Job) -> Callable[[int, float, float], None]:
            progress.start_run(number, f"[{number + 1}/{count}] {job.label}")
            return progress.step

        result = compare(
            recipe,
            given.schemes,
            data,
            out,
            seeds=seeds,
            learning_rates=given.learning_rates,
            baseline=baseline,
            command=command,
            report_run=report_run,
        )
    page = write_report(result, out)
    console = Console()
    console.print(summary_table(result))
    if (grid := grid_table(result)) is not None:
        console.print(grid)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    return 0


def _run_train(given: Namespace, _command: str) -> int:
    _, parser, _ = _train_parser()
    recipe = _recipe(given, parser).check()
    out = Path(given.out)
    claim_output(out)
    with TrainingProgress(recipe.last_step) as progress:
        data = prepare_data(recipe.data, _cache(given), progress.report)
        progress.start_run(0, recipe.model.placement)
        trained = train(recipe, data, out, progress.step)
    validation = trained.validation
    print(f"validation loss {validation.mean:.4f}, perplexity {validation.perplexity:.2f}")
    print(f"model: {out / MODEL_FOLDER}")
    return 0


def _run_generate(given: Namespace, _command: str) -> int:
    print(
        generate_text(
            given.model,
            given.text,
            max_new_tokens=given.max_new_tokens,
            temperature=given.temperature,
            top_p=given.top_p,
            seed=given.seed,
        )
    )
    return 0


def _run_convert(given: Namespace, _command: str) -> int:
    model = save_converted(Path(given.source), Path(given.out), given.placement)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{given.out}: {model.config.placement}, {parameters:,} parameters")
    return 0


_COMMANDS: dict[str, Callable[[Namespace, str], int]] = {
    "compare": _run_compare,
    "train": _run_train,
    "generate": _run_generate,
    "convert": _run_convert,
}


def claim_output(folder: Path) -> None:
    """Create an output folder, and make sure now, before hours of work, that it can be written.

    Raises:
        InputError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written ({error.strerror}). Choose another folder") from error


def _cache(given: Namespace) -> Path | None:
    return None if given.cache is None else Path(given.cache)


def _fail(message: str, status: int = 2) -> int:
    print(f"mixln: {message}", file=sys.stderr)
    return status
