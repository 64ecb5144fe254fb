"""Fake but realistic comparisons: what a small run of these schemes looks like, without training one."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Sequence

import pytest

from mixln.report.results import ComparisonResult, CurvePoint, RunResult
from mixln.report.series import Axis, Estimate, Series
from mixln.report.statistics import summarize
from mixln.studies.compared_kinds import depth_figures

SCHEMES = (
    "pre",
    "mix(alpha=0.25)",
    "lns",
    "post",
    "deepnorm",
    "sandwich",
    "admin",
    "groupnorm(groups=8)",
    "b2t",
    "peri",
    "reordered",
    "hybrid(first_pre=true)",
    "mix(post_layers=2)+scaled_init+scaled_embed",
)
STEPS, BATCH_TOKENS = 400, 8192

MakeRun = Callable[..., RunResult]
MakeResult = Callable[..., ComparisonResult]


def _random(*key: object) -> random.Random:
    return random.Random(zlib.crc32(repr(key).encode()))


def depth_series(name: str, axis: Axis, values: Sequence[float]) -> Series:
    return Series(name, axis, "loss, nats per token", list(map(Estimate, values)))


def _depth(placement: str, seed: int, layers: int) -> dict[str, Series]:
    draw = _random("depth", placement, seed)
    quality = _random("quality", placement).uniform(0.3, 1.0) if placement != "pre" else 0.15
    slope = _random("slope", placement).uniform(-2.5, 1.5)

    def noise(scale: float) -> float:
        return math.exp(draw.gauss(0, scale))

    step = [(0.16 if i < 2 else 0.05 + 0.1 * quality * math.exp(-i / layers)) * noise(0.05) for i in range(layers)]
    series = [
        depth_series(
            "gradient_norm_at_init",
            "layer",
            [0.4 * math.exp(slope * i / layers) * noise(0.06) for i in range(layers)],
        ),
        depth_series(
            "angular_distance",
            "run",
            [
                min(0.9, math.sqrt(sum(s * s for s in step[i : i + n])) * 1.4)
                for n in range(1, layers + 1)
                for i in range(layers - n + 1)
            ],
        ),
        depth_series(
            "removal",
            "layer",
            [
                (3.6 * noise(0.2) if i == 0 else 0.55 * noise(0.2) if i == 1 else quality * 0.2 * noise(0.3) - 0.02)
                for i in range(layers)
            ],
        ),
        depth_series(
            "variance", "state", [0.02 * (1 + i) ** (3.2 - 2.5 * quality) * noise(0.05) for i in range(layers + 1)]
        ),
    ]
    return {one.name: one for one in series}


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """One run; its loss depends on the learning rate, the scheme and, for all schemes alike, the seed."""

    def make(
        placement: str = "pre",
        seed: int = 0,
        learning_rate: float = 1e-3,
        layers: int = 12,
        diverged: bool = False,
        with_depth: bool = True,
        loss: float | None = None,
    ) -> RunResult:
        draw = _random("run", placement, seed, learning_rate)
        final = 4.35 + 0.12 * _random("level", placement).uniform(-1, 1) + 0.9 * (placement == "post")
        final += 0.15 * math.log10(learning_rate / 1e-3) ** 2
        final += _random("seed", seed).gauss(0, 0.02) + draw.gauss(0, 0.008)
        final = loss if loss is not None else final
        last = STEPS if not diverged else 140

        def at(step: int) -> float:
            return (
                final
                + (10.4 - final) * math.exp(-step / 35)
                + 0.9 * math.exp(-step / 150)
                - 0.9 * math.exp(-STEPS / 150)
            )

        train = [CurvePoint(s, s * BATCH_TOKENS, at(s) - 0.05 + draw.gauss(0, 0.07)) for s in range(1, last + 1, 2)]
        validation = [CurvePoint(s, s * BATCH_TOKENS, at(s)) for s in range(0, last + 1, 20)]
        if diverged:
            train.append(CurvePoint(last + 1, (last + 1) * BATCH_TOKENS, math.nan))
        else:
            validation[-1] = CurvePoint(STEPS, STEPS * BATCH_TOKENS, final)
        return RunResult(
            placement=placement,
            seed=seed,
            learning_rate=learning_rate,
            embedding_std=0.02,
            num_hidden_layers=layers,
            num_parameters=10_543_104,
            train_tokens=last * BATCH_TOKENS,
            train_curve=train,
            validation_curve=validation,
            validation_loss=None if diverged else final,
            perplexity=None if diverged else math.exp(final),
            diverged=diverged,
            seconds=212.5 + draw.uniform(-5, 5),
            tokens_per_second=15_400 + draw.uniform(-300, 300),
            depth=_depth(placement, seed, layers) if with_depth and not diverged else None,
            config={"hidden_size": 256, "learning_rate": learning_rate, "betas": [0.9, 0.95], "warmup": None},
        )

    return make


@pytest.fixture(scope="session")
def make_result(make_run: MakeRun) -> MakeResult:
    """A whole comparison; `diverged` and `no_depth` name schemes or (scheme, seed) pairs."""

    def make(
        schemes: Sequence[str] | int = 4,
        seeds: int = 3,
        rates: Sequence[float] = (1e-3,),
        layers: int = 12,
        diverged: Sequence[object] = (),
        no_depth: Sequence[object] = (),
        baseline: str | None = "pre",
    ) -> ComparisonResult:
        names = SCHEMES[:schemes] if isinstance(schemes, int) else schemes
        runs = [
            make_run(
                name,
                seed,
                rate,
                layers,
                diverged=name in diverged or (name, seed) in diverged or (name, rate) in diverged,
                with_depth=name not in no_depth and (name, seed) not in no_depth,
            )
            for name in names
            for rate in rates
            for seed in range(seeds)
        ]
        summaries, grid = summarize(runs, baseline)
        return ComparisonResult(
            baseline=baseline,
            runs=runs,
            summaries=summaries,
            grid=grid,
            facts={
                "Corpus": "wikitext-2, 2.4M tokens, byte-level BPE with 8,000 entries",
                "Model": f"Llama, {layers} layers, width 256, 4 heads, 10.5M parameters",
                "Tokens per run": "3.3M (400 steps of 8,192)",
                "Embedding std": "0.02",
                "Schedule": "cosine to 10 % of the peak, warmup 10 %",
            },
            machine="2 cores of an AMD EPYC, PyTorch 2.9, CPU",
            command="mixln compare --schemes 'pre,mix(alpha=0.25),lns,post' --seeds 3",
            version="0.1.0",
            notes=["Embeddings are drawn with 0.02; the order differs at 0.632."],
            depth_figures=depth_figures(),
        )

    return make
