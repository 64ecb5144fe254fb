"""Processes that turn texts into tokens, in order.

They import neither PyTorch nor transformers: each starts in a second and takes some 70 MB beside its texts.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from tokenizers import Tokenizer

from mixln.data.worker_processes import end_with_parent, interrupts_held_back
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
            with interrupts_held_back():
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
    end_with_parent()


def _work(texts: list[str]) -> Encoded:
    assert _tokenizer is not None
    return _encode(_tokenizer, texts)
