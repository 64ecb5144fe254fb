"""What every layer does in training: gradient norm and update ratio; which module's output is not finite.

A layer is a name and its parameters (`Task.layers`). All measures are dictionaries such as
`{"gradient_norm/layer_03": tensor}` of 0-dim float32 tensors on the model's device; none waits for the device. Nothing
here touches weights, gradients, optimiser state or random state, so a run computes the same with them as without. Over
several processes each function must be called on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.utils._pytree import tree_leaves

from mixln.modes import autocast, evaluation_mode
from mixln.training.callback import Callback, Run, StepRecord

Layers = Iterable[tuple[str, nn.Parameter]]
"""Parameters, each with the name of its layer."""


class LayerMeasurements(Callback):
    """Measures gradients, updates and activations of every layer, every so many steps.

    Args:
        every: steps between measurements; 0: never.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._is_due = False
        self._gradient_norms: dict[str, Tensor] = {}

    def after_backward(self, run: Run, step: int) -> None:
        """Measure the gradients."""
        self._is_due = self._every > 0 and step % self._every == 0
        if self._is_due:
            self._gradient_norms = layer_gradient_norms(run.layers())

    def after_step(self, run: Run, record: StepRecord, good: Tensor) -> None:
        """Measure the update, and the activations on the batch of the step."""
        del good
        if self._is_due:
            record.values |= self._gradient_norms
            record.values |= layer_update_ratios(run.layers(), run.optimizer)
            record.values |= run.activations()


def layer_gradient_norms(layers: Layers) -> dict[str, Tensor]:
    """`gradient_norm/<layer>`: || g ||_2 over all gradients g of a layer's parameters, as they stand in `.grad`.

    To be called after the last backward of a step and before clipping. Where weights are sharded (DTensor), the norm is
    that of the whole gradient, on every process. Parameters without a gradient count as 0.
    """
    squares = _sums(((layer, p.grad) for layer, p in layers if p.grad is not None), _square_sum)
    return {f"gradient_norm/{layer}": square.sqrt() for layer, square in squares.items()}


@torch.no_grad()
def layer_update_ratios(layers: Layers, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`update_ratio/<layer>`: || w_t - w_(t-1) ||_2 / || w_t ||_2 over a layer's parameters, of the step t just made.

    Of Adam and AdamW (weight decay c in AdamW, 0 here in Adam, whose moments hold it already), from their state alone:

        a = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
        w_t - w_(t-1) = -lr (a + c w_t) / (1 - lr c)

    No copy of the weights is kept; memory: two temporaries of the size of one parameter (its local part, where it is
    sharded). To be called after `optimizer.step()` and before a learning rate changes. Parameters that the optimiser
    has not stepped are left out of both norms.

    Args:
        layers: parameters by layer.
        optimizer: Adam or AdamW over them.

    Raises:
        TypeError: another optimiser.
    """
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        raise TypeError(f"update ratios are known for Adam and AdamW, not for {type(optimizer).__name__}")
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    stepped = [(layer, p) for layer, p in layers if "step" in optimizer.state.get(p, {})]

    def update_square_sum(parameter: Tensor) -> Tensor:
        return _adam_update_square_sum(parameter, groups[parameter], optimizer.state[parameter])

    updates = _sums(stepped, update_square_sum)
    weights = _sums(stepped, _square_sum)
    return {f"update_ratio/{layer}": (updates[layer] / weights[layer]).sqrt() for layer in updates}


@torch.no_grad()
def blame_activations(
    model: nn.Module, forward: Callable[[], object], autocast_dtype: torch.dtype | None
) -> str | None:
    """Name the first module, in the order of execution, whose output is infinite or not a number; None: there is none.

    One forward pass, dropout off, that waits for the device after every module; a module comes
    before those around it, so the name is the innermost (`model.layers.4.mlp.down_proj`). Each process answers for the
    rows that it is given. To be called where nothing is compiled, since compiled code does not see the hooks.

    Args:
        model: whose modules are watched.
        forward: runs it.
        autocast_dtype: autocast to this; None: the model's own precision.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            if not found and not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
                found.append(name)

        return after

    device = next(model.parameters()).device
    with ExitStack() as hooks, evaluation_mode(model), autocast(device, autocast_dtype):
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(watch(name or "the model")))
        forward()
    return found[0] if found else None


def _adam_update_square_sum(parameter: Tensor, group: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tensor:
    """Sum of squares of the last update of `parameter` (of its local part), from its state after the step."""
    rate, (beta1, beta2) = group["lr"], group["betas"]
    step = _local(state["step"])
    mean = _local(state["exp_avg"])
    mean_square = _local(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"])
    denominator = (mean_square / _bias_correction(beta2, step)).sqrt_().add_(group["eps"])
    direction = (mean / _bias_correction(beta1, step)).div_(denominator)
    if group["weight_decay"] and group["decoupled_weight_decay"]:
        direction.add_(_local(parameter), alpha=group["weight_decay"])
        rate = rate / (1 - rate * group["weight_decay"])
    return _square_sum(direction) * rate**2


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """1 - beta^t, without the digits that the difference loses in float32 while t is small."""
    return -torch.expm1(step * math.log(beta)) if beta else torch.ones_like(step)


def _sums(tensors: Iterable[tuple[str, Tensor]], measure: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Sum `measure` over all tensors with the same key, and over all the shards of each; equal on every process.

    `measure` maps a tensor to a 0-dim one, of its local part if it is a DTensor. However many tensors there are, each
    way of sharding costs one collective.
    """
    parts: dict[tuple[DeviceMesh, tuple[bool, ...]] | None, dict[str, Tensor]] = {}
    for key, tensor in tensors:
        sharding = _sharding(tensor)
        sums = parts.setdefault(sharding, {})
        value = measure(tensor)
        sums[key] = sums[key] + value if key in sums else value
    totals: dict[str, Tensor] = {}
    for sharding, sums in parts.items():
        values = sums if sharding is None else _reduced(sums, *sharding)
        for key, value in values.items():
            totals[key] = totals[key] + value if key in totals else value
    return totals


def _sharding(tensor: Tensor) -> tuple[DeviceMesh, tuple[bool, ...]] | None:
    """The mesh of a DTensor, and which of its dimensions each hold another part of it."""
    if not isinstance(tensor, DTensor):
        return None
    # partial sums are completed in `_local`
    return tensor.device_mesh, tuple(not (p.is_replicate() or p.is_partial()) for p in tensor.placements)


def _reduced(sums: Mapping[str, Tensor], mesh: DeviceMesh, sharded: tuple[bool, ...]) -> dict[str, Tensor]:
    placements = [Partial() if is_sharded else Replicate() for is_sharded in sharded]
    local = torch.stack(list(sums.values()))
    whole = DTensor.from_local(local, mesh, placements, run_check=False).full_tensor()
    return dict(zip(sums, whole.unbind(), strict=True))


def _local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that this process holds; any other tensor as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    if any(placement.is_partial() for placement in tensor.placements):
        tensor = tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])
    return tensor.to_local()


def _square_sum(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(_local(tensor), dtype=torch.float32).square()
