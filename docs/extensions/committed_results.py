"""Results from the numbers that lie in docs/results: what the gallery draws.

The files are plain numbers, some written by earlier versions. What is drawn of them is the present code's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mixln.report import ComparisonResult, CurvePoint, RunResult, summarize
from mixln.report.depth_report import DepthReport
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import Axis, Estimate, Series
from mixln.studies.compared_kinds import depth_figures
from mixln.studies.diagnose import all_entries
from mixln.studies.measuring import presented
from mixln.version import __version__

_DEPTH: dict[str, tuple[str, Axis, str]] = {
    "gradient_norm_at_init": ("gradient_norm_at_init", "layer", "L2 norm"),
    "removal_loss_increase": ("removal", "layer", "nats per token"),
    "variance": ("variance", "state", "squared units of the stream"),
    "angular_distance": ("angular_distance", "run", "share of a half turn"),
}
"""What the runs of docs/results/registry call each series: its name, axis and unit today."""


def comparison(folder: Path, facts: Mapping[str, str], command: str) -> ComparisonResult:
    """A comparison of the runs in a folder of docs/results/registry."""
    runs = [_run(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    order = ["pre", "mix", "lns"]
    runs.sort(key=lambda run: next((place for place, name in enumerate(order) if run.placement.startswith(name)), 9))
    placements = {run.placement for run in runs}
    baseline = "pre" if "pre" in placements else None
    summaries, grid = summarize(runs, baseline)
    return ComparisonResult(
        baseline=baseline,
        runs=runs,
        summaries=summaries,
        grid=grid,
        facts=dict(facts),
        machine="2 cores of an Intel Xeon at 2.10 GHz",
        command=command,
        version=__version__,
        depth_figures=depth_figures(),
    )


def _run(found: dict[str, Any]) -> RunResult:
    depth = {
        _DEPTH[name][0]: _series(name, values) for name, values in (found["depth"] or {}).items() if name in _DEPTH
    }
    known = {name: found[name] for name in found if name not in ("schema_version", "depth")}
    curves: dict[str, Any] = {
        name: [CurvePoint(**point) for point in known[name]] for name in ("train_curve", "validation_curve")
    }
    return RunResult(**known | curves, depth=depth or None)


def _series(name: str, values: Sequence[Any]) -> Series:
    called, axis, unit = _DEPTH[name]
    numbers = chain.from_iterable(values) if axis == "run" else values
    return Series(called, axis, unit, [Estimate(float("nan") if one is None else one) for one in numbers])


def diagnosis(path: Path) -> DepthReport:
    """A diagnosis from a file of plain numbers, shown as the present measures show theirs."""
    found = json.loads(path.read_text(encoding="utf-8"))
    models = [presented(_model(one), all_entries()) for one in found.pop("models")]
    return DepthReport(models=models, version=__version__, **found)


def _model(found: dict[str, Any]) -> ModelDiagnosis:
    series = {
        name: Series(
            name,
            one["axis"],
            one["unit"],
            [
                Estimate(float("nan") if value is None else value, None if interval is None else tuple(interval))
                for value, interval in zip(one["values"], one["intervals"], strict=True)
            ],
            one.get("labels"),
        )
        for name, one in found.pop("series").items()
    }
    return ModelDiagnosis(**found, series=series)
