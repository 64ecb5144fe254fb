"""`mixln remove-norm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mixln.tasks.norm_removal.config import NormRemovalConfig

if TYPE_CHECKING:
    from mixln.report.norm_removal import NormRemovalReport


def remove_norm(
    model: str,
    out: Path,
    *,
    text: str = "python",
    no_control: bool = False,
    config: NormRemovalConfig,
    cache: Path | None = None,
) -> None:
    """Remove every LayerNorm or RMSNorm from a trained Pre-LN model by a short fine-tuning, in which one norm after the
    other has its scale frozen; what is left is folded into the weights, exactly, and written as a Hugging Face folder
    that opens without mixln (trust_remote_code=True). Three losses on held-out text are reported: of the model as it
    was, fine-tuned equally long with its norms, and without norms. Run the same command again to go on after an
    interruption.

    Example:
        mixln remove-norm runs/train/model runs/norm-free --text books.jsonl.gz --steps 300

    Args:
        model: Hugging Face folder, or name on the hub, of a Pre-LN language model.
        out: folder to write; it must be new or empty.
        text: to train on, as in `mixln train`; default: the standard library.
        no_control: leave out the equally long fine-tuning with norms: half the time.
        cache: folder for tokenised data; default: ~/.cache/mixln.
    """
    from mixln.progress import StageProgress, TrainingProgress
    from mixln.storage import claim_folder, require_new_folder
    from mixln.studies.remove_norm import RemoveNorm

    require_new_folder(out)
    claim_folder(out.absolute().parent)
    with RemoveNorm(model, config, text, out) as work:
        with StageProgress() as progress:
            progress.start(model)
            work.prepare(cache, progress.report)
            work.check_runs(with_control=not no_control)
            original = work.measure_original()
            progress.report(
                f"validation loss of the model as it is: {original.mean:.4f}, over {original.num_tokens:,} tokens"
            )
        with TrainingProgress(work.recipe.last_step, 1 if no_control else 2) as training:
            training.start_run(0, "removing norms")
            work.remove(training.step)
            if not no_control:
                training.start_run(1, "control, with norms")
                work.train_control(training.step)
        report = work.report()
        figure = work.draw(report)
        work.write(report)
    print(_result(report))
    print(f"{out}; metrics of both runs beside {figure}")


def _result(report: NormRemovalReport) -> str:
    control = "" if report.loss_control is None else f", {report.loss_control:.4f} fine-tuned with norms"
    return (
        f"validation loss {report.loss_original:.4f} before{control}, {report.loss_norm_free:.4f} without norms "
        f"({report.train_tokens:,} tokens; folding changed logits of up to {report.largest_logit:.3g} by at "
        f"most {report.folding_difference:.2g})"
    )
