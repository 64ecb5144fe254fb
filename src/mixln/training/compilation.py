"""Whether a model is compiled, and how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils._triton import has_triton

from mixln.errors import InputError
from mixln.training.config import Recipe
from mixln.training.linear_cross_entropy import HeadKernels
from mixln.training.objective import CausalLanguageModelObjective

_TOKENS_WORTH_COMPILING = {"cpu": 200_000, "cuda": 50_000_000}
"""Token slots of a run from which the time to compile (some 20 s, however many layers there are) is earned back."""

_MOST_GRAPHS = 64
"""Graphs of one function, before PyTorch refuses another: placements differ in their blocks, batches in their size."""


def decide_compilation(recipe: Recipe, device: torch.device) -> bool:
    """Return whether to compile: as the recipe says, or by the length of the run.

    Raises:
        InputError: the recipe wants it, and this machine has no compiler.
    """
    wanted = recipe.execution.compile
    if wanted == "never":
        return False
    if wanted == "auto":
        slots = recipe.last_step * recipe.tokens_per_step
        return slots >= _TOKENS_WORTH_COMPILING.get(device.type, 0) and can_compile(device)
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


def compile_objective(objective: CausalLanguageModelObjective) -> None:
    """Compile each block, the final norm and the kernels of the head, in place.

    By block and not as a whole: blocks of one kind share one graph, so the time does not grow with depth, and what FSDP
    and hooks do around a block stays outside. Parameter names stay as they are.
    """
    torch._dynamo.reset()  # the graphs of an earlier run of this process count against the limit
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
    for module in compiled_modules(objective.model):
        module.forward = torch.compile(module.forward, dynamic=False, fullgraph=True)
    objective.kernels = HeadKernels.compiled()


def undo_compilation(objective: CausalLanguageModelObjective) -> None:
    """Take back `compile_objective`."""
    for module in compiled_modules(objective.model):
        module.__dict__.pop("forward", None)
    objective.kernels = HeadKernels()


def compiled_modules(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model (those that transformers says not to split), and its final norm."""
    block_names: set[str] = set(getattr(model, "_no_split_modules", None) or ())
    modules = [module for module in model.modules() if type(module).__name__ in block_names]
    stack = model.get_submodule(str(getattr(model, "base_model_prefix", "")))
    final_norm = getattr(stack, "norm", getattr(stack, "ln_f", None))
    return [*modules, final_norm] if isinstance(final_norm, nn.Module) else modules


@contextmanager
def number_of_threads(threads: int) -> Iterator[None]:
    """Within the block PyTorch uses so many threads; sums are cut up by thread, so results depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within the block nothing is compiled: for shapes that come once, such as a validation's last batch."""
    with torch.compiler.set_stance("force_eager"):
        yield
