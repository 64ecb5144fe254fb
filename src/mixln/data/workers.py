"""Processes that turn texts into tokens, in order.

They import neither PyTorch nor transformers: each starts in a second and takes some 70 MB beside its texts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import numpy as np
from tokenizers import Tokenizer

from mixln.errors import InputError

Encoded = tuple[np.ndarray, np.ndarray]
"""Tokens of texts one after another, and how many each text has; shapes (tokens,) and (texts,)."""

_BATCHES_AHEAD = 2
"""For each worker: the one in work, and the next."""

_tokenizer: Tokenizer | None = None
"""The tokenizer of a worker process."""


def tokenized_batches(
    batches: Iterable[list[str]], tokenizer: Tokenizer, workers: int
) -> Generator[Encoded, None, None]:
    """Yield the tokens of each batch, in order; close the generator to stop the workers.

    Args:
        batches: Read by this process, two for each worker ahead of what is yielded.
        tokenizer: A tokenizer of the tokenizers library; special tokens that are spelt in a text are encoded as text.
        workers: Processes; with 1, this process does it, on the threads of the tokenizers library.

    Raises:
        InputError: A worker was killed.
    """
    if workers == 1:
        for batch in batches:
            yield _encode(tokenizer, batch)
        return
    # Spawned, not forked: the threads of the tokenizers library do not survive a fork.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_work, (tokenizer,))
    waiting: deque[Future[Encoded]] = deque()
    try:
        for batch in batches:
            with _interrupts_held_back():
                waiting.append(pool.submit(_work, batch))
            if len(waiting) >= _BATCHES_AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            f"a worker process (of {workers}) was killed, perhaps for lack of memory ({error}); run the same command "
            "again with fewer workers, and it goes on from what is finished"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    arrays = [
        np.array(encoding.ids, np.uint32) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ]
    return np.concatenate([np.empty(0, np.uint32), *arrays]), np.array([len(array) for array in arrays], np.int64)


def _begin_work(tokenizer: Tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    tokenizer.encode_special_tokens = True  # which is lost on the way
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)  # a pool's workers would wait for ever for a parent that was killed

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(texts: list[str]) -> Encoded:
    assert _tokenizer is not None
    return _encode(_tokenizer, texts)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal: those that are started in this block never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
