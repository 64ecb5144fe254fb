"""A checkpoint of a run as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedModel

from mixln.errors import InputError
from mixln.placement import PlacementError
from mixln.quiet import quiet_transformers
from mixln.storage import require_new_folder
from mixln.tasks.kinds import KINDS, LANGUAGE
from mixln.tasks.language_model import HUGGINGFACE_FOLDER
from mixln.training.checkpoint import load_weights
from mixln.training.run_folder import MODEL_FOLDER, fill_folder
from mixln.training.saved_checkpoint import (
    CHECKPOINTS_FOLDER,
    checkpoint_step,
    list_checkpoints,
    newest_whole,
)


def find_checkpoint(path: str | Path, step: int | None = None) -> Path:
    """Return the checkpoint that a user means.

    Args:
        path: a checkpoint, or the folder of a run.
        step: which checkpoint of a run; None: the newest that is whole.

    Raises:
        InputError: there is no such checkpoint; the message lists those that there are.
    """
    path = Path(path)
    if (path / HUGGINGFACE_FOLDER).is_dir():
        if step is not None:
            raise InputError(f"{path} is one checkpoint: give the folder of the run with `step`, or leave `step` out")
        return path
    if not (path / CHECKPOINTS_FOLDER).is_dir():
        raise InputError(f"{path} is neither the folder of a run nor one in RUN/{CHECKPOINTS_FOLDER}. Give either")
    found = list_checkpoints(path)
    if not found:
        model = path / MODEL_FOLDER
        hint = f". The run is finished: {model} is its model" if model.exists() else " yet"
        raise InputError(f"{path} has no checkpoint{hint}")
    if step is None:
        newest = newest_whole(path, lambda checkpoint: checkpoint)  # weights alone: of any version
        assert newest is not None
        return newest
    steps = {checkpoint_step(checkpoint): checkpoint for checkpoint in found}
    if step not in steps:
        raise InputError(f"{path} has no checkpoint of step {step}. There are: {', '.join(map(str, steps))}")
    return steps[step]


def export_checkpoint(checkpoint: str | Path, out: str | Path) -> PreTrainedModel:
    """Write the model of a checkpoint, however many processes wrote it, as a Hugging Face folder with its tokenizer or
    image processor.

    Args:
        checkpoint: its folder.
        out: the folder to write, whole or not at all; it must not exist, or be empty.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: the checkpoint is damaged, or none; `out` holds something, or cannot be written.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    require_new_folder(out)
    source = checkpoint / HUGGINGFACE_FOLDER
    if not source.is_dir():
        raise InputError(f"{checkpoint} is no checkpoint: it has no {HUGGINGFACE_FOLDER}/")
    kinds = (kind for kind in KINDS.values() if (source / kind.companion).is_file())
    model_class, companion_class = next(kinds, LANGUAGE).classes_of_checkpoints()
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        model = model_class.from_config(config)
        companion = companion_class.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, PlacementError, StrictDataclassError) as error:
        raise InputError(f"{source} is damaged ({str(error).splitlines()[0]}). Export another checkpoint") from error
    load_weights(checkpoint, model)

    def fill(folder: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(folder)
        companion.save_pretrained(folder)

    fill_folder(out, fill, "Make room, or choose another place")
    return model.eval()
