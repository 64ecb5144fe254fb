"""A function on several processes that communicate; a module of its own so that spawn finds it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn


def run_on_processes(function: Callable[..., None], *arguments: Any, processes: int = 2) -> None:
    """Call `function(rank, *arguments)` on each of several processes, which are set up as torchrun does it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_run, args=(processes, port, function, arguments), nprocs=processes)


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
