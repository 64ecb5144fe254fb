"""python -m tests.sweep --results results.jsonl --table table.md [--only NAME ...] [--family causal ...]"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import transformers
from tests.sweep.catalogue import catalogue
from tests.sweep.healing import healing_data
from tests.sweep.sweep import CHECKS, Result, quiet, sweep


def main() -> None:
    """Sweep over the classes of the transformers that is installed."""
    parser = argparse.ArgumentParser(description="Try mixln on every class of transformers, built small.")
    parser.add_argument("--results", type=Path, required=True, help="JSON lines; what is in it is not tried again")
    parser.add_argument("--only", nargs="*", default=None, help="classes")
    parser.add_argument("--family", nargs="*", default=None, help="families of classes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    entries = [
        entry
        for entry in catalogue()
        if (given.only is None or entry.name in given.only) and (given.family is None or entry.family in given.family)
    ]
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            data = healing_data(Path(folder))
        results = sweep(entries, data, given.results, _show)
    for check in CHECKS:
        counts = dict.fromkeys(("right", "refused", "not built", "WRONG", "TRACEBACK"), 0)
        for result in results:
            if (status := result.status(check)) in counts:
                counts[status] += 1
        print(check, counts)


def _show(result: Result) -> None:
    print(
        result.family, result.name, *(result.status(check) for check in CHECKS), f"{result.seconds:.1f} s", flush=True
    )
    for outcome in result.outcomes:
        if outcome.status != "right":
            print(f"    {outcome.check}: {outcome.status} {outcome.detail[:300]}", flush=True)


if __name__ == "__main__":
    main()
