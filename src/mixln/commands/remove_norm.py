"""`mixln remove-norm`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mixln.commands.arguments import Command, add_fields, cache_folder, command_parser
from mixln.files import claim_folder, require_new_folder
from mixln.normfree.config import NormRemovalConfig
from mixln.progress import StageProgress, TrainingProgress
from mixln.report.norm_removal import NormRemovalReport
from mixln.studies.remove_norm import RemoveNorm


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln remove-norm`."""
    parser = command_parser(
        "Remove every LayerNorm or RMSNorm from a trained Pre-LN model by a short fine-tuning, in which one norm after "
        "the other has its scale frozen; what is left is folded into the weights, exactly, and written as a Hugging "
        "Face folder that opens without mixln (trust_remote_code=True). Three losses on held-out text are reported: of "
        "the model as it was, fine-tuned equally long with its norms, and without norms. Run the same command again to "
        "go on after an interruption.",
        "mixln remove-norm runs/train/model runs/norm-free --text books.jsonl.gz --steps 300",
    )
    parser.add_argument("model", type=str, help="Hugging Face folder, or name on the hub, of a Pre-LN language model")
    parser.add_argument("out", type=str, help="folder to write; it must be new or empty")
    parser.add_argument(
        "--text", type=str, default="python", help="to train on, as in `mixln train`; default: the standard library"
    )
    parser.add_argument(
        "--no-control", action="store_true", help="leave out the equally long fine-tuning with norms: half the time"
    )
    add_fields(parser, NormRemovalConfig)
    parser.add_argument("--cache", type=str, default=None, help="folder for tokenised data; default: ~/.cache/mixln")
    return parser


def run(given: Namespace, _command: str) -> int:
    """Run `mixln remove-norm`."""
    out = Path(given.out)
    config = NormRemovalConfig(**{field.name: given[field.name] for field in fields(NormRemovalConfig)})
    require_new_folder(out)
    claim_folder(out.absolute().parent)
    with RemoveNorm(given.model, config, given.text, out) as work:
        with StageProgress() as progress:
            progress.start(given.model)
            work.prepare(cache_folder(given), progress.report)
            work.check_runs(with_control=not given.no_control)
            original = work.measure_original()
            progress.report(
                f"validation loss of the model as it is: {original.mean:.4f}, over {original.num_tokens:,} tokens"
            )
        with TrainingProgress(work.recipe.last_step, 1 if given.no_control else 2) as training:
            training.start_run(0, "removing norms")
            work.remove(training.step)
            if not given.no_control:
                training.start_run(1, "control, with norms")
                work.train_control(training.step)
        report = work.report()
        figure = work.draw(report)
        work.write(report)
    print(_result(report))
    print(f"{out}; metrics of both runs beside {figure}")
    return 0


def _result(report: NormRemovalReport) -> str:
    control = "" if report.loss_control is None else f", {report.loss_control:.4f} fine-tuned with norms"
    return (
        f"validation loss {report.loss_original:.4f} before{control}, {report.loss_norm_free:.4f} without norms "
        f"({report.train_tokens:,} tokens; folding changed logits of up to {report.largest_logit:.3g} by at "
        f"most {report.folding_difference:.2g})"
    )


COMMAND = Command("remove-norm", "remove the norms of a trained model", build_parser, run)
