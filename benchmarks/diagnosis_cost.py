"""What a diagnosis costs beside plain forward passes: `python -m benchmarks.diagnosis_cost MODEL --documents FILE`.

In interleaved rounds, on the same batches: a plain forward pass; the same with all angular distances and block
influences; the performance drops of removing each layer; and the evaluation of every pruned model. Ratios are taken
within each round. Peak memory is measured in processes of their own, above what the model takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from benchmarks.analysis import estimate
from benchmarks.documents import Counts
from benchmarks.machine import machine_line
from benchmarks.meter import Meter, seconds_of
from mixln.data import open_corpus
from mixln.measure.batches import ModelBatch
from mixln.measure.interventions import removals
from mixln.measure.observation import Measure, observe
from mixln.measure.performance import LanguageModelLoss
from mixln.measure.performance_drop import PerformanceDrop
from mixln.measure.pruning import without_blocks
from mixln.measure.similarity import Similarity
from mixln.measure.texts import text_batches, text_windows
from mixln.models.anatomy import find_block_stack
from mixln.models.load import load_model

_ROOT = Path(__file__).resolve().parent.parent
_WINDOW = 512
_FORWARD, _ANGULAR = "forward", "angular"


def forward(model: nn.Module, batches: list[ModelBatch]) -> None:
    """Plain forward passes with the loss."""
    with torch.no_grad():
        for batch in batches:
            LanguageModelLoss().on(model(**batch.arguments), batch)


class _Loss(Measure):
    def see_output(self, output: object, batch: ModelBatch) -> None:
        LanguageModelLoss().on(output, batch)


def angular(model: nn.Module, batches: list[ModelBatch]) -> None:
    """All angular distances and block influences, and the loss of the plain forward."""
    similarity = Similarity()
    observe(model, batches, [similarity, _Loss()])
    similarity.angular_distance()


def removal(model: nn.Module, batches: list[ModelBatch]) -> None:
    """The performance drop of removing each layer."""
    drops = PerformanceDrop(removals(), LanguageModelLoss())
    observe(model, batches, [drops])
    drops.drop()


def pruned_models(model: nn.Module, batches: list[ModelBatch]) -> None:
    """Every pruned model, evaluated on its own; and the whole one."""
    stack = find_block_stack(model)
    forward(model, batches)
    for index in range(len(stack.layers)):
        with without_blocks(stack, [index]):
            forward(model, batches)


def block_seconds(
    model: nn.Module, batches: list[ModelBatch], action: Callable[[nn.Module, list[ModelBatch]], None]
) -> float:
    """Time that the blocks take of one call."""
    spent, started = 0.0, 0.0

    def before(*_: object) -> None:
        nonlocal started
        started = time.perf_counter()

    def after(*_: object) -> None:
        nonlocal spent
        spent += time.perf_counter() - started

    blocks = list(find_block_stack(model).layers)
    # the first hook and the last, so that what a measure hooks in counts as well
    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(block.register_forward_pre_hook(before, prepend=True))
            hooks.enter_context(block.register_forward_hook(after))
        action(model, batches)
    return spent


def load(given: argparse.Namespace, tokens: int) -> tuple[nn.Module, list[ModelBatch]]:
    """The model, and batches of so many tokens."""
    torch.set_num_threads(given.threads)
    model, tokenizer = load_model(given.model, dtype=given.dtype)
    texts = open_corpus(given.documents).documents()
    windows = text_windows(tokenizer, texts, _WINDOW, tokens, 256, special_tokens=False)
    return model, text_batches(windows, given.batch_size, 0, predicts_next=True)


def peak_bytes(given: argparse.Namespace) -> int:
    """Peak memory of `given.memory_of` in this process, above that of the loaded model."""
    model, batches = load(given, given.tokens)
    meter = Meter(torch.device("cpu"))
    meter.begin()
    {_FORWARD: forward, _ANGULAR: angular, "removal": removal}[given.memory_of](model, batches[:1])
    meter.finish_step(Counts(1, 1))
    return meter.peak_bytes()


def peak_in_a_process(given: argparse.Namespace, what: str) -> int:
    """`peak_bytes` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.diagnosis_cost", *sys.argv[1:], "--memory-of", what]
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    done = subprocess.run(command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def main() -> int:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or hub name of a causal language model")
    parser.add_argument("--documents", default="python", metavar="FILE", help="corpus; default: python")
    parser.add_argument("--tokens", type=int, default=8192, help="for forward and angular distance; default: 8192")
    parser.add_argument("--removal-tokens", type=int, default=2048, help="for removals; default: 2048")
    parser.add_argument("--batch-size", type=int, default=4, help="windows of 512 tokens; default: 4")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--dtype", default="float32", help="default: float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of is not None:
        print(peak_bytes(given))
        return 0
    model, batches = load(given, given.tokens)
    _, few = load(given, given.removal_tokens)
    forward(model, few)
    ratios: dict[str, list[float]] = {"angular / forward": [], "removal / pruned models": [], "of the blocks alone": []}
    for number in range(given.rounds):
        plain, measured = seconds_of(forward, model, batches), seconds_of(angular, model, batches)
        ratios["angular / forward"].append(measured / plain)
        shared, apart = seconds_of(removal, model, few), seconds_of(pruned_models, model, few)
        ratios["removal / pruned models"].append(shared / apart)
        blocks = [block_seconds(model, few, action) for action in (removal, pruned_models)]
        ratios["of the blocks alone"].append(blocks[0] / blocks[1])
        seconds = f"forward {plain:.1f} s, angular {measured:.1f} s, removal {shared:.1f} s, pruned {apart:.1f} s"
        print(f"round {number + 1}: {seconds}", file=sys.stderr, flush=True)
    print(f"{machine_line()}, {given.threads} threads, {given.dtype}")
    for name, values in ratios.items():
        found = estimate(values)
        print(
            f"{name}: {found.median:.3f} [{found.low:.3f} .. {found.high:.3f}] ({found.method}, {found.count} rounds)"
        )
    peaks = {what: peak_in_a_process(given, what) for what in (_FORWARD, _ANGULAR, "removal")}
    print(json.dumps({what: f"{peak / 2**20:.0f} MiB" for what, peak in peaks.items()}))
    for what in (_ANGULAR, "removal"):
        print(f"peak memory of {what} / forward, above the model: {peaks[what] / peaks[_FORWARD]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
