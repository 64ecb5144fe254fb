"""Tokenising a corpus piece by piece, ahead of who reads the pieces, going on from what is finished already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from dataclasses import dataclass

from mixln.data.cache import Report
from mixln.data.piece_maker import PieceJob
from mixln.data.pieces import Piece, PieceHeader, PieceKey, read_header, read_piece
from mixln.data.workers import open_pool
from mixln.errors import InputError
from mixln.files import write_file

_PLAN_FILE = "plan.json"


@dataclass
class PieceCounts:
    """Pieces found finished, and pieces made now."""

    found: int = 0
    made: int = 0


def tokenized_pieces(
    job: PieceJob, workers: int, max_tokens: int | None, report: Report, counts: PieceCounts
) -> Generator[Piece, None, None]:
    """Yield every piece of a corpus in order; they are made in any order, by several workers.

    Close the generator to stop: work under way is given up, finished pieces stay.

    Args:
        job: What to tokenise, and where pieces are stored; those found there are not made again.
        workers: Processes.
        max_tokens: About how many training tokens will be taken; once so many are there in all, no new part is begun.
        report: Called with a line when a damaged piece is found.
        counts: Updated while pieces are made and found.
    """
    _prepare_folder(job)
    schedule = _Schedule(job, max_tokens, counts)
    current: dict[int, int] = {}  # worker -> the part that it is reading
    with open_pool(job, workers) as pool:
        for part in range(len(job.parts)):
            key = PieceKey(part, 0)
            while True:
                while key not in schedule.done:
                    for worker in pool.idle():
                        task = schedule.next_task(current.get(worker))
                        if task is not None:
                            pool.submit(worker, task)
                            current[worker] = task.part
                    if key in schedule.done:  # found on disk
                        break
                    results = pool.finished(block=True)
                    if not results:
                        raise InputError(
                            f"corpus {job.corpus.name!r} changed while it was read: a piece that was there has gone; "
                            "run the same command again when nothing writes to it"
                        )
                    for finished in results:
                        schedule.finish(finished.key, finished.outcome)
                piece = read_piece(job.folder / key.file)
                if piece is None:
                    report(f"piece {job.folder / key.file} is damaged; tokenising it again")
                    schedule.redo(key)
                    continue
                yield piece
                if piece.is_last:
                    break
                key = PieceKey(part, key.number + 1)


def _prepare_folder(job: PieceJob) -> None:
    """Make the folder of pieces, and empty it if it holds those of another plan."""
    plan_file = job.folder / _PLAN_FILE
    plan = json.dumps(job.plan())
    if not plan_file.exists() or plan_file.read_text(encoding="utf-8", errors="replace") != plan:
        shutil.rmtree(job.folder, ignore_errors=True)
        job.folder.mkdir(parents=True)
        write_file(plan_file, plan)


class _Schedule:
    """Which piece to make next.

    Workers keep to the part that they have open, since another one has to be read from its start. Those without one
    open the next part, or, where there is none to open, help with the first part that has not been read to its end:
    each reads all of it and tokenises some of its pieces. How many pieces a part has shows only at its end.

    Attributes:
        done: Pieces that are stored.
    """

    def __init__(self, job: PieceJob, max_tokens: int | None, counts: PieceCounts) -> None:
        self.done: set[PieceKey] = set()
        self._job = job
        self._max_tokens = max_tokens
        self._counts = counts
        # Local files are cheap to read several times, and parts tokenised beyond a limit are lost.
        self._together = max_tokens is not None and not job.corpus.unbounded
        self._tokens = 0
        self._first = 0  # all parts before this one have been read to their ends
        self._opened = 0
        self._next = [0] * len(job.parts)  # first piece not yet given out
        self._ready = [1] * len(job.parts)  # pieces before this one may be given out
        self._num_pieces: list[int | None] = [None] * len(job.parts)
        self._redo: list[PieceKey] = []

    def next_task(self, current: int | None) -> PieceKey | None:
        """The piece that a worker which has the part `current` open is to make; None: nothing is left to begin."""
        if self._redo:
            return self._redo.pop()
        while (task := self._choose(current)) is not None:
            header = read_header(self._job.folder / task.file)
            if header is None:
                return task
            self._counts.found += 1
            self._store(task, header)
        return None

    def finish(self, key: PieceKey, outcome: PieceHeader | int) -> None:
        """Take note of what a worker has made or found."""
        if isinstance(outcome, int):
            self._num_pieces[key.part] = outcome
        else:
            self._counts.made += 1
            self._store(key, outcome)

    def redo(self, key: PieceKey) -> None:
        """Have a piece made again."""
        self._counts.found -= 1
        self.done.discard(key)
        self._redo.append(key)

    def _store(self, key: PieceKey, header: PieceHeader) -> None:
        self.done.add(key)
        self._tokens += header.tokens
        if header.is_last:
            self._num_pieces[key.part] = key.number + 1
        else:
            self._ready[key.part] = max(self._ready[key.part], key.number + 2)

    def _choose(self, current: int | None) -> PieceKey | None:
        while self._first < self._opened and self._is_given_out(self._first):
            self._first += 1
        if current is not None and self._is_ready(current):
            return self._take(current)
        for part in range(self._first, self._opened):
            if self._is_ready(part):
                return self._take(part)
        if self._opened < len(self._job.parts) and self._may_open():
            self._opened += 1
            return self._take(self._opened - 1)
        for part in range(self._first, self._opened):
            if self._num_pieces[part] is None:
                return self._take(part)
        return None

    def _take(self, part: int) -> PieceKey:
        self._next[part] += 1
        return PieceKey(part, self._next[part] - 1)

    def _is_ready(self, part: int) -> bool:
        return self._next[part] < self._ready[part] and not self._is_given_out(part)

    def _is_given_out(self, part: int) -> bool:
        number = self._num_pieces[part]
        return number is not None and self._next[part] >= number

    def _may_open(self) -> bool:
        if self._first == self._opened:  # nothing else to do
            return True
        return not self._together and (self._max_tokens is None or self._tokens < self._max_tokens)
