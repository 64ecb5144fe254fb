"""`mixln export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mixln.announce import announce
from mixln.interruption import keeping
from mixln.signatures import checked_arguments

if TYPE_CHECKING:
    from mixln.studies.saved_model import ConvertedModel


@checked_arguments
def export(source: str | Path, out: str | Path, *, step: int | None = None) -> ConvertedModel:
    """Write the model of a checkpoint, of a run that is going on, interrupted or finished, as a Hugging Face folder
    with its tokenizer or image processor. The checkpoint may have been written by several processes; one reads it.

    Example:
        mixln export runs/train exported --step 100

    Args:
        source: The folder of a run, or of one of its checkpoints.
        out: The folder to write. It must be new or empty.
        step: The step of the checkpoint. Default: the newest.

    Returns:
        The model that was written.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or `out` holds something.
    """
    source, out = Path(source), Path(out)
    announce(("checkpoint", f"{source}, the newest" if step is None else f"{source}, step {step}"), ("folder", out))
    from mixln.studies.saved_model import ConvertedModel
    from mixln.tasks.export import export_checkpoint, find_checkpoint

    with keeping(lambda: "nothing was written"):
        checkpoint = find_checkpoint(source, step)
        model = export_checkpoint(checkpoint, out)
    return ConvertedModel(out, f"{checkpoint.name}, {model.config.placement}, {model.num_parameters():,} parameters")
