"""Processes that make pieces, behind one small interface; with one worker, this process makes them itself."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from mixln.data.piece_maker import PieceJob, PieceMaker
from mixln.data.pieces import PieceHeader, PieceKey
from mixln.errors import InputError

_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Finished:
    """A piece that was made, or found not to exist (see `PieceMaker.make`)."""

    key: PieceKey
    outcome: PieceHeader | int


class Pool(ABC):
    """Workers, numbered from 0, each busy with one piece at most."""

    @abstractmethod
    def idle(self) -> list[int]:
        """Workers with nothing to do."""

    @abstractmethod
    def submit(self, worker: int, key: PieceKey) -> None:
        """Have an idle worker make a piece."""

    @abstractmethod
    def finished(self, *, block: bool) -> list[Finished]:
        """What has been finished since the last call; with `block`, at least one if any worker is busy.

        Raises:
            Exception: What a worker raised.
        """


@contextmanager
def open_pool(job: PieceJob, workers: int) -> Iterator[Pool]:
    """Start workers for a job, and stop them at the end of the block, finished or not."""
    if workers == 1:
        pool = _ThisProcess(job)
        try:
            yield pool
        finally:
            pool.close()
    else:
        pool = _Processes(job, workers)
        try:
            pool.start()
            yield pool
        finally:
            pool.close()


class _ThisProcess(Pool):
    def __init__(self, job: PieceJob) -> None:
        self._maker = PieceMaker(job)
        self._task: PieceKey | None = None

    def idle(self) -> list[int]:
        return [0] if self._task is None else []

    def submit(self, worker: int, key: PieceKey) -> None:
        assert worker == 0
        self._task = key

    def finished(self, *, block: bool) -> list[Finished]:
        if self._task is None or not block:
            return []
        key, self._task = self._task, None
        return [Finished(key, self._maker.make(key))]

    def close(self) -> None:
        self._maker.close()


class _Processes(Pool):
    """Spawned, not forked: the threads of the tokenizers library do not survive a fork."""

    def __init__(self, job: PieceJob, workers: int) -> None:
        self._job = job
        self._workers = workers
        self._processes: list[SpawnProcess] = []
        self._connections: list[Connection] = []
        self._busy: dict[int, PieceKey] = {}

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        with _interrupts_ignored():  # Ctrl-C reaches every process of the terminal: children inherit this, we stop them
            for number in range(self._workers):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs, self._job), name=f"mixln-tokenize-{number}", daemon=True
                )
                process.start()
                theirs.close()  # so that we see its end
                self._processes.append(process)
                self._connections.append(ours)

    def idle(self) -> list[int]:
        return [number for number in range(self._workers) if number not in self._busy]

    def submit(self, worker: int, key: PieceKey) -> None:
        self._busy[worker] = key
        try:
            self._connections[worker].send(key)
        except BrokenPipeError as error:
            raise self._ended(worker) from error

    def finished(self, *, block: bool) -> list[Finished]:
        waiting = {self._connections[number]: number for number in self._busy}
        results: list[Finished] = []
        for connection in wait(list(waiting), None if block and waiting else 0):
            assert isinstance(connection, Connection)
            number = waiting[connection]
            try:
                outcome = connection.recv()
            except (EOFError, ConnectionResetError) as error:
                raise self._ended(number) from error
            if isinstance(outcome, BaseException):
                raise outcome
            results.append(Finished(self._busy.pop(number), outcome))
        return results

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_GRACE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        for connection in self._connections:
            connection.close()

    def _ended(self, number: int) -> InputError:
        process = self._processes[number]
        process.join(_GRACE_SECONDS)
        code = process.exitcode
        reason = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
        return InputError(
            f"worker {number + 1} of {self._workers} ended {reason}, perhaps for lack of memory; run the same command "
            "again with fewer --workers, and it goes on from the pieces that are finished"
        )


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where nobody receives signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(connection: Connection, job: PieceJob) -> None:
    """Make the pieces asked for until the other end is closed; the body of a worker."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    maker = PieceMaker(job)
    try:
        while True:
            key: PieceKey = connection.recv()
            try:
                outcome: PieceHeader | int | BaseException = maker.make(key)
            except Exception as error:
                outcome = _portable(error)
            connection.send(outcome)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone, or has no more work


def _portable(error: Exception) -> Exception:
    """The error itself if it survives pickling, else its text."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    return error if type(copy) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")
