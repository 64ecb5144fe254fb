"""`mixln prune`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mixln.commands.arguments import Command, cache_folder, command_parser
from mixln.depth.stack import find_block_stack
from mixln.device import default_device
from mixln.errors import InputError
from mixln.files import claim_folder, require_new_folder
from mixln.models.load import load_model
from mixln.posttraining import HealingConfig
from mixln.progress import StageProgress, TrainingProgress
from mixln.studies.diagnose import DiagnosisConfig
from mixln.studies.prune import (
    CRITERIA,
    PruningRequest,
    describe_layers,
    parse_layers,
    prune_model,
    select_layers,
)
from mixln.studies.prune_and_heal import HealingReport, PruneAndHeal, healing_folder

_HEAL_ON_THE_SAME_TEXT = ""


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln prune`."""
    parser = command_parser(
        "Remove layers from a model and write what is left as an ordinary Hugging Face folder. Layers are counted from "
        "1, and both ends of a range are included; what will be removed is printed before anything is written. Either "
        "name the layers, or let the cheapest be chosen by a measure on text. With --heal the rest is trained on.",
        "mixln prune runs/train/model runs/pruned --drop 2 --by removal --text books.jsonl.gz --heal",
    )
    parser.add_argument("model", type=str, help="Hugging Face folder, or name on the hub")
    parser.add_argument("out", type=str, help="folder to write; it must be new or empty")
    parser.add_argument(
        "--layers", type=str, default=None, help="what to remove, such as 21-27 or 3,5,8-10; counted from 1, inclusive"
    )
    parser.add_argument("--drop", type=int, default=None, help="remove so many layers, chosen by --by")
    parser.add_argument("--by", type=str, default=None, help=f"{', '.join(CRITERIA)}; default: angular")
    parser.add_argument(
        "--any",
        action="store_true",
        help="with --by angular: any layers, not a run (removal and influence choose any anyway)",
    )
    parser.add_argument(
        "--consecutive", action="store_true", help="with --by removal or influence: a run of consecutive layers"
    )
    parser.add_argument(
        "--text", type=str, default="python", help="what to measure on; default: the standard library's text"
    )
    parser.add_argument("--max-tokens", type=int, default=8192, help="of text to measure on; default: 8192")
    parser.add_argument("--window", type=int, default=512, help="tokens of a piece of text; default: 512")
    parser.add_argument("--batch-size", type=int, default=8, help="pieces measured at once; default: 8")
    parser.add_argument("--stack", type=str, default=None, help="name of the list of layers, where it cannot be told")
    parser.add_argument("--device-map", type=str, default=None, help="share a large model out over devices (auto)")
    parser.add_argument(
        "--heal",
        type=str,
        nargs="?",
        metavar="CORPUS",
        const=_HEAL_ON_THE_SAME_TEXT,
        default=None,
        help="train what is left on this text, as `mixln train` takes it (default: that of --text), and report the "
        "loss before, after pruning and after healing. Run the same command again to go on after an interruption",
    )
    parser.add_class_arguments(HealingConfig, "healing")
    parser.add_argument("--cache", type=str, default=None, help="folder for tokenised data; default: ~/.cache/mixln")
    return parser


def run(given: Namespace, _command: str) -> int:
    """Run `mixln prune`."""
    out = Path(given.out)
    request = _request(given)
    config: HealingConfig = build_parser().instantiate(given).healing
    require_new_folder(out)
    if given.heal is not None:
        return _prune_and_heal(request, config, given.heal or given.text, out, given)
    if config != HealingConfig():
        raise InputError("--healing options go with --heal")
    claim_folder(out.absolute().parent)
    model, tokenizer = load_model(request.source, device=default_device(), device_map=given.device_map)
    stack = find_block_stack(model, request.stack)
    with StageProgress() as progress:
        progress.start(request.source)
        indices = select_layers(request, model, tokenizer, stack, progress.step)
    print(describe_layers(indices, stack), flush=True)
    num_layers = len(stack.layers)
    prune_model(model, tokenizer, indices, out, request.record(indices, num_layers), layers=request.stack)
    print(f"{num_layers - len(indices)} layers left: {out}")
    return 0


def _request(given: Namespace) -> PruningRequest:
    by = given.by or "angular"
    if (given.layers is None) == (given.drop is None):
        raise InputError("give either --layers or --drop")
    if given.layers is not None and given.by is not None:
        raise InputError("--by goes with --drop: --layers names the layers itself")
    if by not in CRITERIA:
        raise InputError(f"there is no --by {by}. There are: {', '.join(CRITERIA)}")
    if given.layers is not None and (given.any or given.consecutive):
        raise InputError("--any and --consecutive go with --drop: --layers names the layers itself")
    if given.any and given.consecutive:
        raise InputError("--any and --consecutive exclude each other")
    if given.drop is not None and given.drop < 1:
        raise InputError("--drop: no layer to remove. Name one at least")
    return PruningRequest(
        source=given.model,
        layers=None if given.layers is None else tuple(parse_layers(given.layers)),
        drop=given.drop or 0,
        by=by,
        consecutive=not given.any if by == "angular" else given.consecutive,
        text=given.text,
        measurement=DiagnosisConfig(
            window=given.window, batch_size=given.batch_size, max_tokens=given.max_tokens
        ).check(),
        stack=given.stack,
    )


def _prune_and_heal(request: PruningRequest, config: HealingConfig, corpus: str, out: Path, given: Namespace) -> int:
    with PruneAndHeal(request, config, corpus, out) as work:
        with StageProgress() as progress:
            progress.start(request.source)
            work.prepare(cache_folder(given), progress.report)
            work.prune(progress.report, progress.step, device_map=given.device_map)
        with TrainingProgress(work.recipe.steps) as training:
            training.start_run(0, "healing")
            report = work.heal(training.step)
    print(_result(report))
    print(f"{out}; metrics and the model before healing: {healing_folder(out)}")
    return 0


def _result(report: HealingReport) -> str:
    healed = report.loss_healed
    assert healed is not None
    recovered = "" if report.recovered is None else f" ({report.recovered:.0%} of what pruning cost is recovered)"
    return (
        f"validation loss {report.loss_before:.4f} before, {report.loss_pruned:.4f} after pruning, {healed:.4f} after "
        f"healing on {report.train_tokens:,} tokens{recovered}"
    )


COMMAND = Command("prune", "remove layers from a model, and heal what is left", build_parser, run)
