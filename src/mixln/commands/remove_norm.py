"""`mixln remove-norm`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

from mixln.announce import announce
from mixln.chosen_device import on_device
from mixln.commands.arguments import PYTHON_ONLY
from mixln.commands.fields import NormRemovalFields
from mixln.commands.settings import changed
from mixln.commands.start import announce_models, announce_text
from mixln.interruption import keeping
from mixln.signatures import checked_arguments
from mixln.tasks.norm_removal.config import REPORT_FILE, NormRemovalConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mixln.studies.norm_free_model import NormFreeModel


@checked_arguments
@on_device
def remove_norm(
    model: Annotated[str | Path | PreTrainedModel, {"as": str}],
    out: str | Path,
    *,
    tokenizer: Annotated[PreTrainedTokenizerBase | None, PYTHON_ONLY] = None,
    text: str | Path = "python",
    no_control: bool = False,
    config: NormRemovalConfig | None = None,
    device: str | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
    **changes: Unpack[NormRemovalFields],
) -> NormFreeModel:
    """Remove every LayerNorm or RMSNorm from a trained Pre-LN model by a short fine-tuning, in which one norm after the
    other has its scale frozen; what is left is folded into the weights, exactly, and written as a Hugging Face folder
    that opens without mixln (trust_remote_code=True). Three losses on held-out text are reported: of the model as it
    was, fine-tuned equally long with its norms, and without norms. Run the same command again to go on after an
    interruption.

    Example:
        mixln remove-norm runs/train/model runs/norm-free --text books.jsonl.gz --steps 300

    Args:
        model: A Hugging Face folder, or a name on the hub, of a Pre-LN language model.
        out: The folder to write. It must be new or empty.
        tokenizer: The tokenizer of a model in memory.
        text: The text to train on, as in `mixln train`.
        no_control: Leave out the equally long fine-tuning with norms, which takes half the time.
        config: How norms are removed. Default: `NormRemovalConfig()`.
        device: Such as cpu, cuda or cuda:1. Default: the GPU, if any.
        cache: The folder for tokenised data. Default: ~/.cache/mixln.
        progress: Show on standard error how far it is.
        **changes: Fields of `config` that differ, such as `steps=300`, `learning_rate`, `batch_size`.

    Returns:
        The model without norms, and the losses; its table has a row for each removal.

    Raises:
        InputError: the model's norms cannot be removed, the schedule is impossible, or `out` holds something.
        TrainingDivergedError: the loss is no number any more.
    """
    del device  # `on_device` has chosen it
    from mixln.storage import claim_folder, require_new_folder

    config, out = changed(config or NormRemovalConfig(), changes), Path(out)
    if not (is_finished := (out / REPORT_FILE).is_file()):
        require_new_folder(out)
    announce_models(model)
    announce_text(text, "data")
    announce(("folder", out))
    from mixln.progress import StageProgress, TrainingProgress
    from mixln.studies.model_folder import source_of
    from mixln.studies.norm_free_model import NormFreeModel
    from mixln.studies.remove_norm import FIGURE_FILE, RemoveNorm, finished_removal, removal_folder

    claim_folder(out.absolute().parent)
    with ExitStack() as held:
        source = held.enter_context(source_of(model, tokenizer, out))
        if is_finished:
            report = finished_removal(source.path, config, str(text), out, source.name, with_control=not no_control)
            announce(("finished", f"already, after {report.train_tokens:,} tokens of training; nothing to do"))
            return NormFreeModel(out, report, removal_folder(out) / FIGURE_FILE)
        work = RemoveNorm(source.path, config, str(text), out, source.name)
        held.enter_context(keeping(work.describe_kept))
        held.enter_context(work)
        with StageProgress(shown=progress) as stages:
            stages.start(source.name)
            work.prepare(cache, stages.report, stages.step)
            work.check_runs(with_control=not no_control)
            original = work.measure_original()
            stages.report(
                f"validation loss of the model as it is: {original.mean:.4f}, over {original.num_tokens:,} tokens"
            )
        with TrainingProgress(work.recipe.last_step, 1 if no_control else 2, shown=progress) as training:
            training.start_run(0, "removing norms")
            work.remove(training.step)
            if not no_control:
                training.start_run(1, "control, with norms")
                work.train_control(training.step)
        report = work.report()
        figure = work.draw(report)
        work.write(report)
    return NormFreeModel(out, report, figure)
