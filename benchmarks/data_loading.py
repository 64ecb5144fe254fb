"""Memory and time of reading shuffled batches from a large token store.

    python benchmarks/data_loading.py [--tokens 100000000] [--batches 200]

Writes a synthetic store (as wide as C4 under a 32,000-token vocabulary: two bytes a token, 480 tokens a document) to a
temporary folder, opens it in a fresh process, reads shuffled batches, and reports how much anonymous resident memory
that process gained (memory that the system cannot take back, unlike the pages of the mapped files) and the time for one
batch, alone and behind a `Prefetcher`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from mixln.data import PackedDataset, TokenStore, TokenStoreWriter, training_batch
from mixln.training.prefetch import Prefetcher

DOCUMENT_TOKENS = 480
VOCAB_SIZE = 32_000
BATCH_SIZE = 512
SEQUENCE_LENGTH = 256


def write_store(folder: Path, tokens: int, shard_tokens: int) -> None:
    generator = np.random.default_rng(0)
    lengths = np.full(2000, DOCUMENT_TOKENS)
    with TokenStoreWriter(folder, VOCAB_SIZE, shard_tokens=shard_tokens) as writer:
        while writer.written.tokens < tokens:
            ids = generator.integers(1, VOCAB_SIZE, size=lengths.sum(), dtype=np.uint16)
            ids[DOCUMENT_TOKENS - 1 :: DOCUMENT_TOKENS] = 0
            writer.extend(ids, lengths)


def memory_mib() -> dict[str, float]:
    """Anonymous and file-backed resident memory of this process, from /proc."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {"anonymous": int(values["RssAnon"]) / 1024, "files": int(values["RssFile"]) / 1024}


def read_store(folder: Path, batches: int) -> None:
    # Whatever the first batch of any size needs (numpy's and torch's own buffers) is there before we measure.
    small = folder.with_name("small")
    training_batch(PackedDataset(TokenStore(small, 0), SEQUENCE_LENGTH), 0, BATCH_SIZE, 0)
    before = memory_mib()
    started = time.perf_counter()
    dataset = PackedDataset(TokenStore(folder, 0), SEQUENCE_LENGTH)
    print(f"store: {len(dataset.store):,} tokens, {len(dataset.store.shards)} shards, {len(dataset):,} rows")
    print(f"opening: {1000 * (time.perf_counter() - started):.1f} ms")
    seconds: list[float] = []
    growth: list[float] = []
    for step in range(batches):
        started = time.perf_counter()
        training_batch(dataset, step, BATCH_SIZE, 0)
        seconds.append(time.perf_counter() - started)
        growth.append(memory_mib()["anonymous"] - before["anonymous"])
    milliseconds = [1000 * value for value in seconds]
    quartiles = statistics.quantiles(milliseconds, n=4)
    print(
        f"one batch of {BATCH_SIZE} x {SEQUENCE_LENGTH}: median {quartiles[1]:.2f} ms, quartiles {quartiles[0]:.2f} "
        f"and {quartiles[2]:.2f} ms, {batches} batches"
    )
    print(
        f"anonymous memory gained: {growth[0]:.1f} MiB after 1 batch, {growth[-1]:.1f} MiB after {batches}, at most "
        f"{max(growth):.1f} MiB; mapped pages: {memory_mib()['files'] - before['files']:.0f} MiB (reclaimable)"
    )
    with Prefetcher(lambda step: training_batch(dataset, step, BATCH_SIZE, 0)) as prefetcher:
        prefetcher.get(0)
        prefetcher.waited_seconds = 0.0
        for step in range(1, 51):
            time.sleep(0.02)  # a training step
            prefetcher.get(step)
        print(f"behind a Prefetcher, with steps of 20 ms: waited {20 * prefetcher.waited_seconds:.2f} ms a batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--shard-tokens", type=int, default=30_000_000)
    parser.add_argument("--batches", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        write_store(Path(temporary, "small"), 1_000_000, arguments.shard_tokens)
        write_store(Path(temporary, "store"), arguments.tokens, arguments.shard_tokens)
        # A fresh process, so that what writing has left in ours does not blur the measurement.
        process = multiprocessing.get_context("spawn").Process(
            target=read_store, args=(Path(temporary, "store"), arguments.batches)
        )
        process.start()
        process.join()


if __name__ == "__main__":
    main()
