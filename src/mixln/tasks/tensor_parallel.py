"""Tensor parallelism of language models: which matrices are split, and among how many processes they can be."""

from __future__ import annotations

from collections.abc import Mapping

from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel
from transformers import PreTrainedModel

from mixln.errors import InputError

SPLIT_EVENLY = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
"""Sizes of a model, as its config calls them, of which each process gets an equal part."""


def check_tensor_parallel_size(sizes: Mapping[str, int], tensor_parallel_size: int) -> None:
    """Raise InputError if the processes that split a model's matrices cannot have equal parts of some sizes by name."""
    for name, number in sizes.items():
        if number % tensor_parallel_size != 0:
            raise InputError(
                f"execution.tensor_parallel_size ({tensor_parallel_size}) does not divide {name} ({number})"
            )


def tensor_parallel_plan(model: PreTrainedModel) -> dict[str, ParallelStyle]:
    """Return transformers' own plan of an architecture in PyTorch's terms.

    Raises:
        InputError: there is none, or it asks for something that is not translated here.
    """
    styles: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    plan: dict[str, str] = getattr(model.config, "base_model_tp_plan", None) or {}
    if not plan or not set(plan.values()) <= set(styles):
        raise InputError(
            f"{type(model).__name__} has no plan for tensor parallelism: set execution.tensor_parallel_size to 1"
        )
    return {name: styles[style]() for name, style in plan.items()}
