"""`mixln prune`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mixln.commands.arguments import Command, command_parser
from mixln.data import open_corpus
from mixln.depth.pruning import check_removable
from mixln.depth.stack import find_block_stack
from mixln.device import default_device
from mixln.errors import InputError
from mixln.files import require_new_folder
from mixln.models.load import load_model
from mixln.progress import StageProgress
from mixln.studies.diagnose import DiagnosisConfig, diagnose_model
from mixln.studies.prune import (
    CRITERIA,
    PruningRecord,
    choose_layers,
    describe_layers,
    measures_for,
    parse_layers,
    prune_model,
)


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln prune`."""
    parser = command_parser(
        "Remove layers from a model and write what is left as an ordinary Hugging Face folder. Layers are counted from "
        "1, and both ends of a range are included; what will be removed is printed before anything is written. Either "
        "name the layers, or let the cheapest be chosen by a measure on text.",
        "mixln prune runs/train/model runs/pruned --drop 2 --by removal --text books.jsonl.gz",
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
    parser.add_argument("--max-tokens", type=int, default=8192, help="of text; default: 8192")
    parser.add_argument("--window", type=int, default=512, help="tokens of a piece of text; default: 512")
    parser.add_argument("--batch-size", type=int, default=8, help="pieces at once; default: 8")
    parser.add_argument("--stack", type=str, default=None, help="name of the list of layers, where it cannot be told")
    parser.add_argument("--device-map", type=str, default=None, help="share a large model out over devices (auto)")
    return parser


def run(given: Namespace, _command: str) -> int:
    """Run `mixln prune`."""
    out, by = Path(given.out), given.by or "angular"
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
    require_new_folder(out)
    indices = None if given.layers is None else parse_layers(given.layers)
    model, tokenizer = load_model(given.model, device=default_device(), device_map=given.device_map)
    stack = find_block_stack(model, given.stack)
    count = len(stack.layers)
    check_removable(range(given.drop) if indices is None else indices, count)
    consecutive = not given.any if by == "angular" else given.consecutive
    if indices is None:
        config = DiagnosisConfig(
            window=given.window,
            batch_size=given.batch_size,
            max_tokens=given.max_tokens,
            performance_tokens=given.max_tokens,
            gradient_tokens=0,
            run_lengths=(given.drop,) if by == "removal" and consecutive and given.drop > 1 else (),
            measures=measures_for(by),
            layers=given.stack,
        ).check()
        with StageProgress() as progress:
            progress.start(given.model)
            texts = open_corpus(given.text).documents()
            diagnosis = diagnose_model(model, tokenizer, texts, config, report_step=progress.step)
        indices = choose_layers(diagnosis, given.drop, by, consecutive=consecutive)
    print(describe_layers(indices, stack), flush=True)
    record = PruningRecord(
        source=given.model,
        removed_layers=[index + 1 for index in indices],
        num_layers_before=count,
        criterion=None if given.layers is not None else by,
        consecutive=given.layers is None and consecutive,
        text=None if given.layers is not None else given.text,
    )
    prune_model(model, tokenizer, indices, out, record, layers=given.stack)
    print(f"{count - len(indices)} layers left: {out}")
    return 0


COMMAND = Command("prune", "remove layers from a model", build_parser, run)
