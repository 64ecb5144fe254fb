"""The processes of a run, and how they share a model: DDP, FSDP2, tensor parallelism, on PyTorch's own engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mixln.device import default_device, num_processes
from mixln.errors import InputError
from mixln.training.config import ExecutionConfig
from mixln.training.objective import Objective, Share

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Processes:
    """The processes of a run as one of them sees them.

    Attributes:
        device: this process's.
        mesh: (data, tensor): processes along `data` see different rows, those along `tensor` hold different parts of
            the same matrices. None: this process is alone.
    """

    device: torch.device
    mesh: DeviceMesh | None = None

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return 0 if self.mesh is None else dist.get_rank()

    @property
    def count(self) -> int:
        """Number of processes."""
        return 1 if self.mesh is None else self.mesh.size()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Number of the share of each batch's rows that this process takes, from 0."""
        return 0 if self.mesh is None else self.mesh["data"].get_local_rank()

    @property
    def data_count(self) -> int:
        """Number of shares that each batch's rows are divided into."""
        return 1 if self.mesh is None else self.mesh["data"].size()

    @property
    def share(self) -> Share:
        """This process's share of each batch's rows."""
        return Share(self.data_rank, self.data_count)

    def sum_over_data(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the shares of the data; in place; on the CPU or on the device."""
        if self.mesh is not None and self.data_count > 1:
            dist.all_reduce(tensor, group=self.mesh["data"].get_group())
        return tensor

    def largest(self, *numbers: int) -> list[int]:
        """Return, for each of some numbers, the largest that a process gives."""
        tensor = torch.tensor(numbers)
        if self.mesh is not None:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def first_of_any(self, things: list[Thing]) -> list[Thing]:
        """Return, on every process, the list of the first process whose list is not empty; it must be picklable."""
        if self.mesh is None or not any(self.largest(len(things))):
            return things
        lists: list[list[Thing]] = [[] for _ in range(self.count)]
        dist.all_gather_object(lists, things)
        return next(filter(None, lists))

    def from_main(self, thing: Any) -> Any:
        """Return what the main process gives, on every process; it must be picklable."""
        if self.mesh is None:
            return thing
        things = [thing]
        dist.broadcast_object_list(things, src=0)
        return things[0]

    def on_main(self, function: Callable[[], Thing]) -> Thing:
        """Return what a function gives on the main process, on every process; its InputError is raised on all."""
        found: Any = None
        if self.is_main:
            try:
                found = function()
            except InputError as error:
                found = error
        found = self.from_main(found)
        if isinstance(found, InputError):
            raise found
        return found

    def wait_for_all(self) -> None:
        """Return once every process has come here."""
        if self.mesh is not None:
            dist.barrier()


@contextmanager
def started_processes(execution: ExecutionConfig) -> Iterator[Processes]:
    """Join the processes that torchrun (or any launcher that sets its variables) has started, if it has.

    Raises:
        InputError: the number of processes is not a multiple of `tensor_parallel_size`.
    """
    device = default_device()
    count = num_processes()
    tensor_parallel_size = execution.tensor_parallel_size
    if count % tensor_parallel_size != 0:
        raise InputError(
            f"execution.tensor_parallel_size ({tensor_parallel_size}) does not divide the {count} processes. Start "
            "another number with torchrun --nproc-per-node, or change it"
        )
    if "RANK" not in os.environ:
        yield Processes(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    own_group = not dist.is_initialized()
    if own_group:
        # with gloo beside nccl, what is on the CPU (flags, checkpoints) never makes the GPU wait
        _join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        shape = (count // tensor_parallel_size, tensor_parallel_size)
        yield Processes(device, init_device_mesh(device.type, shape, mesh_dim_names=("data", "tensor")))
    finally:
        if own_group:
            dist.destroy_process_group()


def _join(backend: str) -> None:
    try:
        dist.init_process_group(backend)
    except RuntimeError as error:
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            raise
        raise InputError(
            "the restarted processes do not find each other, since torchrun hands them the addresses of lost ones. Set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is started"
        ) from error


def share_out(
    objective: Objective, processes: Processes, execution: ExecutionConfig, autocast_dtype: torch.dtype | None
) -> None:
    """Distribute a model that has not been placed on its device.

    With fsdp each block is a unit of its own and the rest another. Weights, gradients and optimiser state are float32
    shards; blocks are gathered in the autocast dtype, and gradients reduced in float32.

    Raises:
        InputError: the model cannot do what is asked for.
    """
    mesh = processes.mesh
    if execution.activation_checkpointing:
        objective.checkpoint_activations()
    if mesh is None:
        return
    if execution.tensor_parallel_size > 1:
        objective.split_matrices(mesh["tensor"])
    if execution.strategy == "fsdp":
        # inputs keep their dtype: the residual stream stays float32, as under autocast on one process
        policy = MixedPrecisionPolicy(param_dtype=autocast_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in objective.blocks():
            fully_shard(block, mesh=mesh["data"], mp_policy=policy)
        fully_shard(objective, mesh=mesh["data"])


def replicate(objective: nn.Module, processes: Processes, execution: ExecutionConfig) -> nn.Module:
    """Wrap a materialised model for DDP, if that is the strategy; else return it."""
    if processes.mesh is None or execution.strategy != "ddp":
        return objective
    return DistributedDataParallel(
        objective,
        device_ids=[processes.device] if processes.device.type == "cuda" else None,
        process_group=processes.mesh["data"].get_group(),
        gradient_as_bucket_view=True,
        # those that change in training are added up over the processes by who has them (see Callback.after_step)
        broadcast_buffers=False,
    )


def gradient_exchange(module: nn.Module, *, wanted: bool) -> AbstractContextManager[object]:
    """Return a context in which a backward of DDP exchanges gradients only if `wanted`: once a step is enough.

    FSDP exchanges them every time: to wait, each process would have to hold the whole gradient.
    """
    if isinstance(module, DistributedDataParallel) and not wanted:
        return module.no_sync()
    return nullcontext()


@contextmanager
def gathered_weights(module: nn.Module) -> Iterator[None]:
    """Within the block, the model inside an objective can be called by itself, whose root holds some of its weights."""
    if isinstance(module, FSDPModule):
        module.unshard()
    try:
        yield
    finally:
        release_gathered_weights(module)


def release_gathered_weights(module: nn.Module) -> None:
    """Free what a forward without backward has left gathered, so that `parameters()` are the optimiser's again."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients down together to the L2 norm `max_norm`, if they have a greater one; 0: leave them.

    Returns:
        Their norm before, sharded or not; a scalar of the device.
    """
    # PyTorch's functions take tensors that are distributed over one mesh
    by_mesh: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_mesh.setdefault(mesh_of(parameter), []).append(parameter)
    norms = [torch.nn.utils.get_total_norm([p.grad for p in some if p.grad is not None]) for some in by_mesh.values()]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = torch.linalg.vector_norm(torch.stack(whole))
    if max_norm:
        for some in by_mesh.values():
            torch.nn.utils.clip_grads_with_norm_(some, max_norm, norm)
    return norm


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """Return the mesh that a tensor is distributed over, or None."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def check_batch(batch_size: int, processes: Processes) -> None:
    """Raise InputError if the rows of a batch cannot be divided evenly."""
    if batch_size % processes.data_count != 0:
        raise InputError(
            f"batch_size ({batch_size}) is not a multiple of the {processes.data_count} processes that share it"
        )
