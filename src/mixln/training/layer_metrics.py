"""What every layer does in training: gradient norm, update ratio, activation RMS and variance; what is not finite.

A layer is a part of the model by depth: `embedding`, `layer_01` .. `layer_L`, `final_norm`, `head`. All measures are
dictionaries such as `{"gradient_norm/layer_03": tensor}` of 0-dim float32 tensors on the model's device; none waits for
the device. Nothing here touches weights, gradients, optimiser state or random state, so a run computes the same with
them as without. Over several processes each function must be called on all of them.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.nn.parallel import DistributedDataParallel

from mixln.data import Batch
from mixln.depth import evaluation_mode, record_block_inputs
from mixln.depth.forward import TokenBatch, autocast, batch_logits, counted_positions
from mixln.depth.sums import at_least_float32

MEASURED_ROWS = 2
"""Rows of a batch that activations are measured on."""

_LAYERS_NAMES = ("layers", "h")
_FINAL_NORM_NAMES = ("norm", "ln_f", "final_layer_norm")

_BLOCK = re.compile(rf"(?:^|\.)(?:{'|'.join(_LAYERS_NAMES)})\.(\d+)(?:\.|$)")
_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module"}
"""Name components that DDP, torch.compile and activation checkpointing put in."""


def layer_gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """`gradient_norm/<layer>`: || g ||_2 over all gradients g of a layer's parameters, as they stand in `.grad`.

    To be called after the last backward of a step and before clipping. Where weights are sharded (DTensor), the norm is
    that of the whole gradient, on every process. Parameters without a gradient count as 0.
    """
    squares = _sums(
        ((layer, p.grad) for layer, p in _parameters_by_layer(model) if p.grad is not None),
        _square_sum,
    )
    return {f"gradient_norm/{layer}": square.sqrt() for layer, square in squares.items()}


@torch.no_grad()
def layer_update_ratios(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`update_ratio/<layer>`: || w_t - w_(t-1) ||_2 / || w_t ||_2 over a layer's parameters, of the step t just made.

    Of Adam and AdamW (weight decay c in AdamW, 0 here in Adam, whose moments hold it already), from their state alone:

        a = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
        w_t - w_(t-1) = -lr (a + c w_t) / (1 - lr c)

    No copy of the weights is kept; memory: two temporaries of the size of one parameter (its local part, where it is
    sharded). To be called after `optimizer.step()` and before a learning rate changes. Parameters that the optimiser
    has not stepped are left out of both norms.

    Args:
        model: the model.
        optimizer: Adam or AdamW over its parameters.

    Raises:
        TypeError: another optimiser.
    """
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        raise TypeError(f"update ratios are known for Adam and AdamW, not for {type(optimizer).__name__}")
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    stepped = [(layer, p) for layer, p in _parameters_by_layer(model) if "step" in optimizer.state.get(p, {})]

    def update_square_sum(parameter: Tensor) -> Tensor:
        return _adam_update_square_sum(parameter, groups[parameter], optimizer.state[parameter])

    updates = _sums(stepped, update_square_sum)
    weights = _sums(stepped, _square_sum)
    return {f"update_ratio/{layer}": (updates[layer] / weights[layer]).sqrt() for layer in updates}


def layer_activations(
    model: nn.Module, batch: TokenBatch, autocast_dtype: torch.dtype | None, rows: int = MEASURED_ROWS
) -> dict[str, Tensor]:
    """RMS and variance of the residual stream, from one more forward pass over the first rows, dropout off.

        activation_rms/<layer>     sqrt(mean over tokens and channels of y^2), y the output of the layer
        residual_variance/<layer>  variance over channels of x, the input of the layer, averaged over tokens

    x_l is the input of block l, x_(l+1) its output; `activation_rms/embedding` is of x_1,
    `residual_variance/final_norm` of x_(L+1). The variance is that of `mixln.depth.variance_by_layer` (Curse of Depth:
    Sun et al. 2025). Padding and other positions without a target stay out of both averages. Each process measures the
    rows that it is given.

    Args:
        model: a causal language model whose blocks `mixln.depth.find_block_stack` finds; it may be wrapped in DDP,
            sharded with FSDP2 or compiled (the pass itself runs without compilation).
        batch: (batch, sequence) tokens.
        autocast_dtype: autocast to this; None: the model's own precision.
        rows: so many rows of the batch.
    """
    few = Batch(batch.input_ids[:rows], batch.targets[:rows], batch.position_ids[:rows])
    with _measuring(model) as inner:
        states = record_block_inputs(inner, few, autocast_dtype=autocast_dtype).hidden_states
    names = ["embedding", *_layer_names(len(states) - 1), "final_norm"]
    counted = counted_positions(few).to(states[0].device)
    values: dict[str, Tensor] = {}
    for index, state in enumerate(states):
        x = at_least_float32(state)
        values[f"activation_rms/{names[index]}"] = _mean_where(counted, x.square().mean(-1)).sqrt()
        values[f"residual_variance/{names[index + 1]}"] = _mean_where(counted, x.var(-1, correction=0))
    return values


@torch.no_grad()
def blame_activations(model: nn.Module, batch: TokenBatch, autocast_dtype: torch.dtype | None) -> str | None:
    """Name the first module, in the order of execution, whose output is infinite or not a number; None: there is none.

    One forward pass over the whole batch, dropout off, that waits for the device after every module; a module comes
    before those around it, so the name is the innermost (`model.layers.4.mlp.down_proj`). Each process answers for the
    rows that it is given.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            if not found and not all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(output)):
                found.append(name)

        return after

    with _measuring(model) as inner, ExitStack() as hooks, evaluation_mode(inner), autocast(inner, autocast_dtype):
        for name, module in inner.named_modules():
            hooks.enter_context(module.register_forward_hook(watch(_clean(name) or "the model")))
        batch_logits(inner, batch)
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


def _mean_where(mask: Tensor, values: Tensor) -> Tensor:
    # not values[mask], whose size the host would have to wait for
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def _parameters_by_layer(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every parameter with the name of its layer, which its own name and place tell: `...layers.<i>....` is a block,
    what comes before the blocks the embedding, what comes after them the final norm and the head.
    """
    named = [(_clean(name), parameter) for name, parameter in model.named_parameters()]
    blocks = [match and int(match[1]) for match in (_BLOCK.search(name) for name, _ in named)]
    layer_names = _layer_names(1 + max((block for block in blocks if block is not None), default=0))
    found: list[tuple[str, nn.Parameter]] = []
    after_blocks = False
    for (name, parameter), block in zip(named, blocks, strict=True):
        if block is not None:
            layer, after_blocks = layer_names[block], True
        elif not set(_FINAL_NORM_NAMES).isdisjoint(name.split(".")):
            layer = "final_norm"
        else:
            layer = "head" if after_blocks else "embedding"
        found.append((layer, parameter))
    return found


def _layer_names(num_layers: int) -> list[str]:
    """layer_01 .. layer_L: of one width, so that names sort by depth."""
    width = max(2, len(str(num_layers)))
    return [f"layer_{number:0{width}}" for number in range(1, num_layers + 1)]


def _clean(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


@contextmanager
def _measuring(model: nn.Module) -> Iterator[nn.Module]:
    """Give the model that DDP or torch.compile wraps, to be run once without compilation and without a backward."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    inner = getattr(inner, "_orig_mod", inner)
    # compiled code does not see hooks set after compilation; importing dynamo takes seconds, so not for nothing
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with eager:
            yield inner
    finally:
        for module in inner.modules():
            if isinstance(module, FSDPModule):
                # FSDP2 leaves the root gathered for a backward that does not come, and would go on with those weights
                module.reshard()
