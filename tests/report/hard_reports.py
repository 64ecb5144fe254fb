"""Reports that are hard to draw, made of plain data: what a test draws, and a person looks at.

`python tests/report/hard_reports.py FOLDER` writes them as pages, with an `index.html` that shows all.
"""

from __future__ import annotations

import math
import random
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from mixln.report.depth_report import DepthReport
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.results import ComparisonResult, CurvePoint, RunResult
from mixln.report.series import Axis, Estimate, Series
from mixln.report.statistics import summarize
from mixln.studies.compared_kinds import depth_figures
from mixln.studies.diagnose import all_entries
from mixln.studies.measuring import presented

Number = Callable[[int], float]
UNIT = "loss, nats per token"


def draws(*key: object) -> random.Random:
    return random.Random(zlib.crc32(repr(key).encode()))


def series(name: str, axis: Axis, values: Iterable[float], spread: float = 0.0, unit: str = UNIT) -> Series:
    """With intervals of this share of the values, if any."""
    return Series(
        name,
        axis,
        unit,
        [Estimate(v, (v - spread * abs(v), v + spread * abs(v)) if spread else None) for v in values],
    )


def diagnosed(
    name: str,
    layers: int,
    removal: Number | None = None,
    *,
    spread: float = 0.2,
    scale: float = 1.0,
    without: Sequence[str] = (),
    wide: dict[int, float] | None = None,
) -> ModelDiagnosis:
    """A model with every common measure; `wide` gives layers (from 1) an interval that reaches so far up."""
    draw = draws(name, layers)
    cost = removal or (lambda layer: (3.0 if layer == 1 else 0.15) * draw.uniform(0.5, 1.5))
    costs = [cost(layer) * scale for layer in range(1, layers + 1)]
    turn = [0.05 + 0.2 / layer for layer in range(1, layers + 1)]
    runs = [
        scale * math.sqrt(sum(t * t for t in turn[first : first + length]))
        for length in range(1, layers + 1)
        for first in range(layers - length + 1)
    ]
    found = [
        series("removal", "layer", costs, spread),
        series("removal_of_2", "first_of_run", [a + b for a, b in pairwise(costs)], spread),
        series("attention_removal", "layer", [0.3 * one for one in costs], spread),
        series("feed_forward_removal", "layer", [0.8 * one for one in costs], spread),
        series("swap", "first_of_pair", [0.5 * one for one in costs[1:]], spread),
        series("repeat", "layer", [0.6 * one for one in costs], spread),
        series(
            "block_influence", "layer", [scale * 0.3 / layer for layer in range(1, layers + 1)], spread, "1 - cosine"
        ),
        series("angular_distance", "run", runs, unit="share of a half turn"),
        series("variance", "state", [scale * 0.02 * 1.4**state for state in range(layers + 1)], spread, "units"),
        series("attention_share", "layer", [scale / layer for layer in range(1, layers + 1)], spread, "share"),
        series("feed_forward_share", "layer", [scale * 0.7 for _ in range(layers)], spread, "share"),
        series("gradient_norm", "layer", [scale * 0.4 * 0.9**layer for layer in range(layers)], unit="L2 norm"),
        series("performance", "model", [3.2]),
        series("perplexity", "model", [24.5], unit="perplexity"),
    ]
    if wide:
        ends = [
            replace(one, interval=(one.value, wide[layer])) if layer in wide else one
            for layer, one in enumerate(found[0].estimates, start=1)
        ]
        found[0] = replace(found[0], estimates=ends)
    diagnosis = ModelDiagnosis(
        model=name,
        kind="LlamaForCausalLM",
        layers_name="model.layers",
        block_kind="LlamaDecoderLayer",
        num_layers=layers,
        num_parameters=135_000_000,
        layer_parameters=[3_500_000] * layers,
        tokens=65_536,
        performance_tokens=8_192,
        documents=64,
        performance=UNIT,
        series={one.name: one for one in found if one.name not in without},
        seconds=321.0,
    )
    return presented(diagnosis, all_entries())


def report(*models: ModelDiagnosis) -> DepthReport:
    return DepthReport(
        models=list(models),
        text="runs/a text with spaces.jsonl.gz",
        machine="2 cores of a processor",
        command="mixln diagnose 'runs/a model' --text books.jsonl.gz",
        version="0.0",
    )


def run(
    scheme: str,
    seed: int = 0,
    *,
    layers: int = 12,
    loss: float | None = None,
    rate: float = 1e-3,
    diverged: bool = False,
    scale: float = 1.0,
    with_depth: bool = True,
) -> RunResult:
    draw = draws(scheme, seed, rate)
    final = 4.3 + 0.2 * draw.random() if loss is None else loss
    points = [(step, final + (10.4 - final) * math.exp(-step / 40)) for step in range(0, 401, 20)]
    if diverged:
        points = [*points[:6], (120, 50.0), (140, 4.1e5)]
    curve = [CurvePoint(step, step * 8192, value) for step, value in points]
    measured = diagnosed(scheme, layers, scale=scale * draw.uniform(0.9, 1.1)).series
    depth = {name: measured[name] for name in ("angular_distance", "removal", "variance")}
    depth["gradient_norm_at_init"] = replace(measured["gradient_norm"], name="gradient_norm_at_init")
    return RunResult(
        placement=scheme,
        seed=seed,
        learning_rate=rate,
        embedding_std=0.02,
        num_hidden_layers=layers,
        num_parameters=263_936,
        train_tokens=3_276_800,
        train_curve=curve,
        validation_curve=curve,
        validation_loss=None if diverged else final,
        perplexity=None if diverged else math.exp(final),
        diverged=diverged,
        seconds=200.0,
        tokens_per_second=15_000.0,
        depth=None if diverged or not with_depth else depth,
        config={"hidden_size": 256},
    )


def comparison(runs: list[RunResult], baseline: str | None = "pre") -> ComparisonResult:
    summaries, grid = summarize(runs, baseline)
    return ComparisonResult(
        baseline=baseline,
        runs=runs,
        summaries=summaries,
        grid=grid,
        facts={"Model": "llama, 12 layers, 0.264M parameters"},
        machine="2 cores of a processor",
        command="mixln compare --schemes pre 'mix(alpha=0.25)'",
        version="0.0",
        depth_figures=depth_figures(),
    )


LONG = [
    "runs/2026-11-29_sweep-of-learning-rates/mix(alpha=0.25)+scaled_init+scaled_embed/lr-3e-3/seed-0/model",
    "runs/2026-11-29_sweep-of-learning-rates/mix(alpha=0.25)+scaled_init+scaled_embed/lr-3e-3/seed-1/model",
    "HuggingFaceTB/SmolLM2-135M-intermediate-checkpoints-step-2000000",
    "sentence-transformers/all-mpnet-base-v2",
    "averyveryverylongnamewithoutanyplacewhereitmightbebrokeninapanelorlegend",
    "a",
    "$x^2$ & <b>bold</b></script>",
    "DeepSeek-R1-Distill-Qwen-1.5B",
]
PREFIX = "mix(alpha=0.25)+scaled_init+scaled_embed"
REGISTRY = [
    *("pre", "post", "mix(alpha=0.25)", "lns", "deepnorm", "sandwich", "admin", "groupnorm(groups=8)", "b2t", "peri"),
    *("reordered", "hybrid", "hybrid(first_pre=true)", "none", "pre+qk_norm", "reordered+qk_norm(per_head=false)"),
    *("pre+gpas", "mix(alpha=0.25)+gpas", "pre+dyt", "pre+derf"),
]


def hard_reports() -> dict[str, DepthReport | ComparisonResult]:
    """Reports by what is hard about them."""
    return {
        "eight models with long names": report(*(diagnosed(name, 12) for name in LONG)),
        "one model far worse than the others": report(
            *(
                diagnosed(name, 12, scale=40.0 if name == "broken" else 1.0)
                for name in ("one", "two", "three", "broken")
            )
        ),
        "one huge interval": report(
            diagnosed("narrow", 12, spread=0.05),
            diagnosed("wide", 12, spread=0.05, wide={5: 250.0}),
            diagnosed("all wide", 12, spread=8.0),
        ),
        "96 layers and 2 layers": report(diagnosed("deep", 96), diagnosed("shallow", 2)),
        "many layers cut off": report(
            diagnosed("every ninth", 96, lambda layer: 9.0 + layer if layer % 9 == 1 else 0.05),
            diagnosed("first five", 24, lambda layer: 12.0 / layer if layer <= 5 else 0.02),
        ),
        "all values equal": report(
            diagnosed("ones", 12, lambda _: 1.0, spread=0.0), diagnosed("zeros", 12, lambda _: 0.0, scale=0.0)
        ),
        "negative values": report(
            diagnosed("harmful", 12, lambda layer: -0.3 if layer % 2 else -0.01),
            diagnosed("both", 12, lambda layer: -5.0 if layer == 3 else 0.02 * layer),
        ),
        "missing and infinite values": report(
            diagnosed("holes", 12, lambda layer: math.inf if layer in (2, 3) else math.nan if layer == 7 else 0.1),
            diagnosed("no removal", 12, without=("removal", "removal_of_2", "swap")),
            diagnosed("nothing finite", 6, lambda _: math.nan),
        ),
        "very small and very large numbers": report(
            diagnosed("tiny", 12, lambda layer: 3e-7 / layer, scale=1e-3),
            diagnosed("large", 12, lambda layer: 4e6 / layer),
        ),
        "one small and one large model": report(diagnosed("small numbers", 12, scale=1e-6), diagnosed("usual", 12)),
        "one seed": comparison([run("pre"), run("mix(alpha=0.25)"), run("lns")]),
        "one diverged, one untrained": comparison(
            [
                run(scheme, seed, loss=6.72 if scheme == "post" else None, diverged=(scheme, seed) in lost)
                for lost in [{("deepnorm", 0), ("deepnorm", 1), ("lns", 1)}]
                for scheme in ("pre", "post", "deepnorm", "lns", "mix(alpha=0.25)")
                for seed in range(2)
            ]
        ),
        "twenty schemes": comparison([run(scheme) for scheme in REGISTRY]),
        "schemes with one prefix": comparison(
            [
                run(f"{PREFIX}{end}", seed, with_depth=end != "+dyt")
                for end in ("", "+gpas", "+qk_norm", "+gpas+qk_norm(per_head=false)", "+dyt", "+derf")
                for seed in range(3)
            ],
            PREFIX,
        ),
        "many learning rates": comparison(
            [
                run(scheme, rate=rate, loss=4.4 + 90 * rate, diverged=rate > 2e-2 and scheme == "pre")
                for scheme in ("pre", "mix(alpha=0.25)")
                for rate in (1e-4, 1.1e-4, 1.2e-4, 3e-4, 1e-3, 2e-3, 3e-3, 1e-2, 3e-2)
            ]
        ),
        "equal losses": comparison([run(scheme, seed, loss=5.0) for scheme in ("pre", "lns") for seed in range(3)]),
    }


def write_pages(folder: Path) -> Path:
    """Write every report in a folder of its own, and a page that shows all of them."""
    from html import escape

    from mixln.report import write_report

    frames = []
    for number, (name, one) in enumerate(hard_reports().items()):
        out = folder / f"{number:02d}"
        page = one.save(out) if isinstance(one, DepthReport) else write_report(one, out)
        frames.append(f"<h1>{escape(name)}</h1><iframe src={page.relative_to(folder)} width=100% height=3000></iframe>")
    index = folder / "index.html"
    index.write_text(f"<!doctype html><meta charset=utf-8><title>Hard reports</title>{''.join(frames)}")
    return index


if __name__ == "__main__":
    print(write_pages(Path(sys.argv[1])))
