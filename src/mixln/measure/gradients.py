"""Gradient norm of each layer (Mix-LN: Li, Yin, Liu 2024, arXiv 2412.13795)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch, model_batches
from mixln.measure.estimates import DocumentSums, Estimates, with_interval, without_interval
from mixln.measure.forward import TokenBatch, autocast
from mixln.measure.observation import Tick, block_stack_of, no_tick
from mixln.measure.performance import LanguageModelLoss, Loss
from mixln.measure.sums import no_tokens_error, where_float64_is
from mixln.models.anatomy import BlockStack
from mixln.modes import all_requiring_grad, evaluation_mode


def gradient_norms(
    model: nn.Module | BlockStack,
    batches: Iterable[TokenBatch | ModelBatch],
    loss: Loss | None = None,
    *,
    autocast_dtype: torch.dtype | None = None,
    intervals: bool = True,
    tick: Tick = no_tick,
) -> Estimates:
    """|| d loss / d theta_l ||_2 over all parameters theta_l of block l, loss = total loss / number of targets.

    The gradient is that of the loss over all batches together (not a mean of per-batch norms), at the model's current
    weights, dropout off (Mix-LN: Li, Yin, Liu 2024, arXiv 2412.13795). Existing `.grad`s, `requires_grad` flags and the
    mode are left as they were; frozen parameters count too.

    Intervals are over documents. With g_i the gradient of document i's summed loss, n_i its targets,
    G = sum g_i / sum n_i: the interval is that of || G ||, linearised: document i weighs
    G . (g_i - n_i G) / (|| G || sum n_i).

    Memory: the blocks' gradients summed so far (float32, float64 for float64 models), those of the current batch, and
    its activations (gradient checkpointing works in training mode only, so it does not help here: use small batches).

    Args:
        model: one that `find_block_stack` knows, or the blocks that it has found.
        batches: with targets. For intervals they are gone through twice, once for G, then
            document by document for the products: no iterator, which could be gone through only once.
        loss: of the model; None: that of a language model.
        autocast_dtype: autocast to this; None: the model's own precision.
        intervals: False: one pass, and no intervals.
        tick: called after each batch and, for intervals, after each document of each batch.

    Returns:
        (L,), nats per target (token, image) and unit of weight.

    Raises:
        InputError: no target, or a model whose blocks are not found.
    """
    stack = block_stack_of(model)
    loss = loss or LanguageModelLoss()
    sums, num_targets = _summed_gradients(stack, model_batches(batches), loss, autocast_dtype, tick)
    norms = torch.stack([_dot(layer, layer).sqrt() for layer in sums])
    if not intervals:
        return without_interval(norms / num_targets)
    projections = DocumentSums()
    for batch in model_batches(batches):
        for document in documents_of(batch):
            part = batch.select(batch.documents == document)
            targets = loss.counts(part).sum()
            if targets == 0:
                continue
            gradients, _ = _summed_gradients(stack, [part], loss, autocast_dtype, tick)
            dots = torch.stack([_dot(one, other) for one, other in zip(sums, gradients, strict=True)])
            projections.update(dots[None], targets[None], part.documents[:1])
    products, counts = projections.stacked()
    shares = counts[:, None] / num_targets
    return with_interval(norms / num_targets, (products / norms - shares * norms) / num_targets)


def documents_of(batch: ModelBatch) -> list[int]:
    """The numbers of a batch's documents, each once."""
    return list(dict.fromkeys(batch.documents.tolist()))


def _summed_gradients(
    stack: BlockStack, batches: Iterable[ModelBatch], loss: Loss, autocast_dtype: torch.dtype | None, tick: Tick
) -> tuple[list[list[torch.Tensor]], int]:
    """For each layer the gradients of the summed loss, one for each parameter; and how many targets."""
    own = [[parameter for parameter in block.parameters() if parameter.is_floating_point()] for block in stack.layers]
    parameters = list(dict.fromkeys(parameter for layer in own for parameter in layer))
    totals = {p: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters}
    num_targets = 0
    model = stack.model
    with evaluation_mode(model), all_requiring_grad(parameters), torch.enable_grad():
        for batch in batches:
            if batch.targets is None:
                raise InputError("gradient norms need a loss, but the batches have no targets")
            with autocast(model, autocast_dtype):
                summed = loss.summed(batch.run(model), batch).sum()
            gradients = torch.autograd.grad(summed, parameters, allow_unused=True, materialize_grads=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                totals[parameter] += gradient
            num_targets += int(loss.counts(batch).sum())
            tick()
    if num_targets == 0:
        raise no_tokens_error()
    return [[totals[parameter] for parameter in layer] for layer in own], num_targets


def _dot(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    pairs = zip(one, other, strict=True)
    return torch.stack(
        [(where_float64_is(a).double() * where_float64_is(b).double()).sum().cpu() for a, b in pairs]
    ).sum()
