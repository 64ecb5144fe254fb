"""What training minimises, and on what: the part of the interface to tasks that needs no run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from mixln.errors import InputError

Batch = dict[str, Any]
"""The arguments of an objective by name: trees of tensors, whose first dimension is the rows of the batch."""

Reduce = Callable[[Tensor], Tensor]
"""Adds a tensor up over the processes that have shares of the data."""


class Share(NamedTuple):
    """Which rows of each batch a process takes: those with the numbers first, first + of_how_many, and so on."""

    first: int = 0
    of_how_many: int = 1

    def of(self, rows: Any) -> Any:
        """Return this share of some rows: of a tensor, an array or a sequence."""
        return rows[self.first :: self.of_how_many]


class Evaluation(Protocol):
    """What a task says of a model on held-out data."""

    @property
    def numbers(self) -> Mapping[str, float]:
        """Return what goes into the metrics, by name; a run whose numbers are not finite has diverged."""
        ...


WHOLE = Share()
"""All rows."""


class Objective(nn.Module):
    """What training minimises, as one module: it maps a batch to its loss, summed over the rows.

    The loss stands inside the module since sharded weights (FSDP2) are whole only while the forward of the root module
    runs; DDP likewise sees one module with one output. What the engine has to know of a model is asked here; by
    default a model has no blocks, and is compiled, sharded and replicated as a whole or not at all.

    Args:
        model: what is trained.

    Attributes:
        model: the same model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def blocks(self) -> Sequence[nn.Module]:
        """Return the repeated parts of the model: each is compiled for itself, and a unit of FSDP."""
        return ()

    def compiled_modules(self) -> Sequence[nn.Module]:
        """Return the modules whose forward is compiled."""
        return self.blocks()

    def use_compiled_kernels(self, *, wanted: bool) -> None:
        """Use compiled functions of its own or not."""

    def checkpoint_activations(self) -> None:
        """Compute the blocks' activations again in the backward pass instead of keeping them.

        Raises:
            InputError: the model cannot do that.
        """
        raise InputError(
            f"a {type(self.model).__name__} has no activation checkpointing: leave "
            "execution.activation_checkpointing out"
        )

    def split_matrices(self, mesh: DeviceMesh) -> None:
        """Split every matrix among the processes of a mesh.

        Raises:
            InputError: the model cannot be split, or not among so many.
        """
        del mesh
        raise InputError(
            f"a {type(self.model).__name__} has no plan for tensor parallelism: set execution.tensor_parallel_size to 1"
        )
