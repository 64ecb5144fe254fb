"""python docs/extensions/commit_results.py REPORT.json OUT.json, or NORM_FREE OUT.json: numbers for the gallery.

The first writes what the gallery draws of a diagnosis, the second of a removal of norms, as plain numbers that stay
readable when the form of reports changes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def plain_diagnosis(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a `report.json`, without how they are shown."""
    kept = {name: report[name] for name in ("text", "machine", "command")}
    return kept | {"models": [_model(model) for model in report["models"]]}


def _model(model: dict[str, Any]) -> dict[str, Any]:
    series = {
        name: {
            "axis": one["axis"],
            "unit": one["unit"],
            "values": [estimate["value"] for estimate in one["estimates"]],
            "intervals": [estimate["interval"] for estimate in one["estimates"]],
            "labels": one["labels"],
        }
        for name, one in model["series"].items()
    }
    return {name: value for name, value in model.items() if name != "shown"} | {"series": series}


def plain_removal(folder: Path) -> dict[str, Any]:
    """The curves and removals of a model that `mixln remove-norm` wrote."""
    report = json.loads((folder / "norm_removal.json").read_text(encoding="utf-8"))
    runs = folder.with_name(f"{folder.name}.removal")
    curves = {label: _curve(runs / run) for label, run in (("norm_free", "removal"), ("control", "control"))}
    return {"loss_original": report["loss_original"], "removals": report["removals"], "curves": curves}


def _curve(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        {name: line[name] for name in ("step", "loss", "validation_loss") if line.get(name) is not None}
        for line in lines
    ]


def main(source: Path, out: Path) -> None:
    """Write the file."""
    found = plain_removal(source) if source.is_dir() else plain_diagnosis(json.loads(source.read_text("utf-8")))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
