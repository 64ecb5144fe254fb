"""A function in a process of its own, or in several that share its work; the benchmark exchanges messages with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from benchmarks.measure import last_lines, status_of

END = "end"
"""What kind of message the last of a process is."""

Function = Callable[..., dict[str, Any]]
"""Called with the connection to the benchmark (None on all processes but the first), then with its arguments."""


class Process:
    """A function that runs beside this program; its output goes to a file, what it returns is its last message.

    A message is a dictionary: `kind`, `status` (ok, failed, not installed), `message` if it is not ok, and `values`.

    Args:
        label: what it is about; also the name of its log.
        function: what runs, of the top level of a module.
        arguments: of the function.
        folder: for the log.
        environment: variables that differ from this process's.
        count: so many processes share the work, as torchrun starts them; the first one speaks for all.
    """

    def __init__(
        self,
        label: str,
        function: Function,
        arguments: tuple[Any, ...],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        count: int = 1,
    ) -> None:
        self.label = label
        self._log = folder / f"{label.replace(' ', '-').replace('/', '-')}-{time.monotonic_ns()}.log"
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._processes: list[SpawnProcess] = []
        try:
            for variables in _ranks(count):
                connection = theirs if variables.get("RANK", "0") == "0" else None
                process = context.Process(target=_run, args=(connection, self._log, function, arguments))
                with _environment({**(environment or {}), **variables}):
                    process.start()
                self._processes.append(process)
        except BaseException:
            self.end()
            raise
        finally:
            theirs.close()

    def receive(self, until: float) -> dict[str, Any]:
        """Return its next message, or that of a failure: it has died, or has said nothing until `until` (monotonic)."""
        while (left := until - time.monotonic()) > 0:
            there = wait([self._connection, *(process.sentinel for process in self._processes)], left)
            if self._connection in there:
                with suppress(EOFError, OSError):
                    return self._connection.recv()
            if there and (reason := self._death()):
                return {"kind": END, "status": "failed", "message": reason}
        return {"kind": END, "status": "failed", "message": "its time was over"}

    def go_on(self) -> None:
        """Let the function go on, which waits for a message."""
        with suppress(OSError):  # it has died, which `receive` will tell
            self._connection.send(None)

    def end(self) -> None:
        """End the processes, if they are still there, and all that they have started (compilers)."""
        for process in self._processes:
            if process.pid is not None:
                with suppress(ProcessLookupError, PermissionError):  # it may not have a group of its own yet
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        for process in self._processes:
            process.join()
        self._connection.close()

    @property
    def signal(self) -> int:
        """The signal that has ended the first process; 0: none has."""
        return max(0, -(self._processes[0].exitcode or 0))

    def _death(self) -> str:
        """Why a process has gone without a last message; empty: all that have gone had done their work."""
        for process in self._processes:
            process.join(0)
            code = process.exitcode
            if code is not None and (code != 0 or process is self._processes[0]):
                how = f"killed by signal {-code}" if code < 0 else f"ended with status {code}"
                return f"{how}: {last_lines(self._log)}"
        time.sleep(0.01)  # sentinels of processes that are done stay ready
        return ""


def _ranks(count: int) -> Iterator[dict[str, str]]:
    """The variables of each process, as torchrun sets them; none for a process that is alone."""
    if count == 1:
        yield {}
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for rank in range(count):
        yield {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Within the block, environment variables have other values, which a process has that is started there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _run(connection: Connection | None, log: Path, function: Function, arguments: tuple[Any, ...]) -> None:
    os.setsid()  # Ctrl-C is for the benchmark, which ends this one
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    found = status_of(lambda: function(connection, *arguments))
    if connection is not None:
        connection.send({"kind": END, **found})
    elif found["status"] != "ok":
        raise SystemExit(found["message"])
