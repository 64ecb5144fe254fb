"""`precision.json`: in which precision a run is, or several that are compared are; decided why, on what machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from mixln.device import default_device, processor_capabilities, processor_name
from mixln.errors import InputError
from mixln.records import decode, read_json
from mixln.storage import write_file
from mixln.training.callbacks.metrics import METRICS_FILE
from mixln.training.precision import Precision, PrecisionName

PRECISION_FILE = "precision.json"


def settled_precision(
    folder: Path, wanted: str, decide: Callable[[], Precision], in_checkpoint: object = None
) -> Precision:
    """Return the precision of what is computed in a folder: decided the first time, and the same from then on.

    In this order: what the recipe says, unless that is auto; the checkpoint that the run goes on from;
    `precision.json`; what was decided before there were records, if the folder has metrics, but none; else `decide`.
    What was decided for auto stays on record if some of several runs then have a recipe that says more.

    Args:
        folder: of a run, or of several that are to have the same precision.
        wanted: of the recipe: auto, float32 or bfloat16.
        decide: called if nothing is known.
        in_checkpoint: the name in the checkpoint that the run goes on from; None: there is none, or it says nothing.

    Raises:
        InputError: the record is damaged, or cannot be written.
    """
    path = folder / PRECISION_FILE
    known = read_precision(path) if path.exists() else None
    if wanted != "auto":
        found = decide()
        if known is None:
            _write(path, found)
        return found
    found = known if known is not None and known.wanted == "auto" else None
    if in_checkpoint is not None and (found is None or found.name != in_checkpoint):
        found = Precision(_checked_name(in_checkpoint, folder), "as the run's checkpoint says", "auto")
    if found is None:
        began_without = known is None and any(folder.rglob(METRICS_FILE))
        found = _precision_before_records() if began_without else decide()
    if found != known:
        _write(path, found)
    return found


def read_precision(path: Path) -> Precision:
    """Return what a record says.

    Raises:
        InputError: it is damaged.
    """
    try:
        return decode(Precision, read_json(path), "it")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}). It says in which precision the run began: write that into it again, or "
            "delete it, and a run with a checkpoint goes on as the checkpoint says"
        ) from error


def _write(path: Path, precision: Precision) -> None:
    write_file(path, json.dumps(asdict(precision), indent=2) + "\n")


def _checked_name(name: object, where: Path) -> PrecisionName:
    for known in get_args(PrecisionName):
        if name == known:
            return known
    raise InputError(f"{where} says that a run is in the precision {name!r}, which is none: it is damaged")


def _precision_before_records() -> Precision:
    low = default_device().type == "cuda" or "amx_bf16" in processor_capabilities()
    reason = "the run began before this was measured: bfloat16 on GPUs and with AMX, on nothing else"
    return Precision("bfloat16" if low else "float32", reason, "auto", processor_name())
