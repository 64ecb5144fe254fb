"""`mixln export`."""

from __future__ import annotations

from pathlib import Path


def export(source: Path, out: Path, *, step: int | None = None) -> None:
    """Write the model of a checkpoint, of a run that is going on, interrupted or finished, as a Hugging Face folder
    with its tokenizer. The checkpoint may have been written by several processes; one reads it.

    Example:
        mixln export runs/train exported --step 100

    Args:
        source: folder of a run (its newest checkpoint), or of one checkpoint.
        out: folder to write; must not exist or be empty.
        step: which checkpoint of a run; default: the newest.
    """
    from mixln.tasks.export import export_checkpoint, find_checkpoint

    checkpoint = find_checkpoint(source, step)
    model = export_checkpoint(checkpoint, out)
    print(f"{out}: {checkpoint.name}, {model.config.placement}, {model.num_parameters():,} parameters")
