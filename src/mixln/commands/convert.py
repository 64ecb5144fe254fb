"""`mixln convert`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from transformers import PreTrainedModel

from mixln.commands.arguments import Command, command_parser
from mixln.errors import InputError
from mixln.exchange.convert import save_converted
from mixln.exchange.export import save_stock
from mixln.exchange.published import PUBLISHED_NORM_TYPES, published_placement

TARGETS = ("hf", "hf-neutral-norms")


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln convert`."""
    parser = command_parser(
        "With --placement: read a checkpoint folder of the published Mix-LN / LayerNorm Scaling training code, whose "
        "config does not say how its norms are placed, and write one that AutoModelForCausalLM opens. With --to hf: "
        "write a model of this library as one of transformers' own classes, which opens without mixln, if one of them "
        "computes exactly the same; what was written is compared with the source. With --to hf-neutral-norms: the same "
        "for a model without norms, whose class has norms that are made to do nothing.",
        "mixln convert checkpoints/model_10001 converted --placement 'mix(post_layers=3)'; "
        "mixln convert runs/train/model exported --to hf",
    )
    parser.add_argument("source", type=str, help="folder with config.json and the weights")
    parser.add_argument("out", type=str, help="folder to write; must not exist or be empty")
    parser.add_argument(
        "--to",
        type=str,
        default=None,
        help="export: hf, classes of Hugging Face transformers; hf-neutral-norms, for models without norms",
    )
    parser.add_argument("--placement", type=str, default=None, help="import: the placement that it was trained with")
    parser.add_argument(
        "--norm-type",
        type=str,
        default=None,
        help=f"import: or the NORM_TYPE of the training script: {', '.join(PUBLISHED_NORM_TYPES)}",
    )
    parser.add_argument("--post-num", type=int, default=None, help="import: and its POST_NUM, for Mix-LN")
    return parser


def _placement(given: Namespace) -> str:
    """Return the placement that the user states in one of two ways."""
    if given.placement is None and given.norm_type is None:
        raise InputError(
            "say what to do: --placement PLACEMENT (or the published code's --norm-type) imports a checkpoint of the "
            "published training code, which was trained with that placement; --to hf exports a model of this library"
        )
    if given.placement is not None and given.norm_type is not None:
        raise InputError("state how the norms are placed once: either --placement, or the published code's --norm-type")
    if given.norm_type is None and given.post_num is not None:
        raise InputError("--post-num goes with --norm-type; in a --placement write mix(post_layers=...)")
    if given.norm_type is not None:
        return published_placement(given.norm_type, given.post_num)
    return str(given.placement)


def run(given: Namespace, _command: str) -> int:
    """Run `mixln convert`."""
    if given.to is None:
        return _import(given)
    if given.to not in TARGETS:
        raise InputError(f"there is no --to {given.to}. There is: {', '.join(TARGETS)}")
    if (given.placement, given.norm_type, given.post_num) != (None, None, None):
        raise InputError(
            "--placement, --norm-type and --post-num are for an import: a model that is exported with --to has its "
            "placement in config.json"
        )
    export = save_stock(given.source, Path(given.out), neutral_norms=given.to == "hf-neutral-norms")
    print(
        f"{given.out}: {type(export.model).__name__}, {_count(export.model)} parameters; its logits differ by "
        f"{export.difference:.2g} at most, of up to {export.largest_logit:.3g} ({_dtype(export.model)})"
    )
    return 0


def _import(given: Namespace) -> int:
    model = save_converted(Path(given.source), Path(given.out), _placement(given))
    print(f"{given.out}: {model.config.placement}, {_count(model)} parameters")
    return 0


def _count(model: PreTrainedModel) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


COMMAND = Command(
    "convert", "import checkpoints of the published training code, export to stock classes", build_parser, run
)
