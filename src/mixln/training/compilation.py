"""Whether a model is compiled, and how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils._triton import has_triton

from mixln.errors import InputError
from mixln.training.objective import Objective

_SLOTS_WORTH_COMPILING = {"cpu": 200_000, "cuda": 50_000_000}
"""Vectors (of a language model: token slots) of a run from which the time to compile is earned back: some 20 s, however
many layers there are."""

_MOST_GRAPHS = 64
"""Graphs of one function, before PyTorch refuses another: placements differ in their blocks, batches in their size."""


def decide_compilation(wanted: str, slots: int, device: torch.device) -> bool:
    """Return whether to compile: as the configuration says, or by the length of the run.

    Args:
        wanted: auto, always or never.
        slots: vectors that go through each matrix in the whole run: steps times rows times tokens.
        device: that computes.

    Raises:
        InputError: it is wanted, and this machine has no compiler.
    """
    if wanted == "never":
        return False
    if wanted == "auto":
        return slots >= _SLOTS_WORTH_COMPILING.get(device.type, 0) and can_compile(device)
    require_compiler(device, "execution.compile is always")
    return True


def require_compiler(device: torch.device, reason: str) -> None:
    """Raise InputError, with the reason why a compiler is needed, if this machine has none."""
    if not can_compile(device):
        what = "a C++ compiler: install g++" if device.type == "cpu" else "Triton: install it"
        raise InputError(f"{reason}, and this machine lacks {what}")


def can_compile(device: torch.device) -> bool:
    """Return whether this machine has what torch.compile needs: on a CPU a C++ compiler, on a GPU Triton."""
    if device.type != "cpu":
        return has_triton()
    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


def compile_objective(objective: Objective) -> None:
    """Compile what an objective says is to be compiled, in place.

    By block and not as a whole: blocks of one kind share one graph, so the time does not grow with depth, and what FSDP
    and hooks do around a block stays outside. Parameter names stay as they are.
    """
    torch._dynamo.reset()  # the graphs of an earlier run of this process count against the limit
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
    for module in objective.compiled_modules():
        module.forward = torch.compile(module.forward, dynamic=False, fullgraph=True)
    objective.use_compiled_kernels(wanted=True)


def undo_compilation(objective: Objective) -> None:
    """Take back `compile_objective`."""
    for module in objective.compiled_modules():
        module.__dict__.pop("forward", None)
    objective.use_compiled_kernels(wanted=False)


@contextmanager
def number_of_threads(threads: int) -> Iterator[None]:
    """Within the block PyTorch uses so many threads; sums are cut up by thread, so results depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def uncompiled() -> AbstractContextManager[object]:
    """Return a context in which nothing is compiled: for shapes that come once, such as a validation's last batch."""
    return torch.compiler.set_stance("force_eager")
