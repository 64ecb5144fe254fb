"""Processes for the tests, forked by a server that has made the imports, so that each starts at once.

Functions on several processes that communicate stand in modules of their own, where such a process finds them.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

PRELOADED = ["mixln.tasks.pretraining", "mixln.data.prepare", "torch.utils.tensorboard", "pytest"]
"""Modules, since a package imports nothing before one of its names is used."""


def forkserver() -> ForkServerContext:
    """The context of processes that have made the imports, which take five seconds, and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_on_processes(function: Callable[..., None], *arguments: Any, processes: int = 2) -> None:
    """Call `function(rank, *arguments)` on each of several processes, which are set up as torchrun does it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_together(_run, processes, port, function, arguments, processes=processes)


def start_together(function: Callable[..., None], *arguments: Any, processes: int = 2) -> None:
    """Call `function(rank, *arguments)` on each of several processes; raise what one of them raises."""
    forkserver()
    given = (dict(os.environ), function, arguments)
    start_processes(_with_environment, given, nprocs=processes, start_method="forkserver")


def _with_environment(
    rank: int, environment: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """What the server gives its children is the environment that it was started with."""
    os.environ.clear()
    os.environ.update(environment)
    function(rank, *arguments)


def _run(rank: int, count: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    distributed.init_process_group("gloo")
    function(rank, *arguments)
    distributed.destroy_process_group()
