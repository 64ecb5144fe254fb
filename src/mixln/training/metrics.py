"""Metrics of a run: one JSON line a step in `metrics.jsonl`, and the same numbers to TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from mixln.errors import InputError
from mixln.files import write_file

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Writes the metrics of a run, and takes up those of an interrupted one.

    Args:
        folder: of the run.
        resume_step: the step that the run goes on from; lines of later steps are dropped, since they will be
            written again.
    """

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        path = folder / METRICS_FILE
        kept = [line for line in read_metrics(folder) if line["step"] <= resume_step] if resume_step else []
        write_file(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step (numbers that are not finite are written as null)."""
        finite = {name: value if abs(value) < float("inf") else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def flush(self) -> None:
        """Put on disk what has been written; called before a checkpoint, so that it never knows of later steps."""
        self._file.flush()
        self._tensorboard.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._tensorboard.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics; the last one is left out if a kill cut it short.

    Raises:
        InputError: another line is damaged.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    try:
        *complete, _unfinished = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in complete]
    except ValueError as error:
        raise InputError(f"{path} is damaged. Delete {folder} to start this run over") from error
