"""What the loss becomes without one layer (performance drop; Mix-LN: Li, Yin, Liu 2024, arXiv 2412.13795)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mixln.depth.forward import TokenBatch, autocast, batch_logits, evaluation_mode
from mixln.depth.loss import EvaluationLoss, batch_loss, total_cross_entropy
from mixln.depth.stack import BlockRecord, BlockStack, find_block_stack, recording, run_blocks_from
from mixln.depth.sums import no_tokens_error
from mixln.errors import InputError


class RemovalLosses:
    """Total loss with all blocks and without each, batch by batch.

    To remove block l is to feed its input x_l straight into block l + 1. What comes before l does not change, so one
    recorded forward pass serves all L removals, which then cost (L - 1) / 2 forward passes together, and L heads.

    Attributes:
        loss: the loss with all blocks so far.

    Raises:
        InputError: from the first `update`, if the model's logits are not head(final_norm(x)) (softcapped or scaled
            logits, say): the loss of a shortened model cannot be told from its blocks then; from `result()`, if no
            token was counted.
    """

    def __init__(self, stack: BlockStack) -> None:
        self.loss = EvaluationLoss(0.0, 0)
        self._stack = stack
        self._totals = torch.zeros(len(stack.layers), dtype=torch.float64)
        self._checked = False

    def update(self, record: BlockRecord, loss: EvaluationLoss, targets: torch.Tensor) -> None:
        """Count one batch: its record, its loss with all blocks, and its targets (batch, sequence)."""
        if not self._checked:
            self._check_head(record, loss, targets)
        self.loss += loss
        num_blocks = len(self._stack.layers)
        for removed, hidden_states in enumerate(record.hidden_states[:num_blocks]):
            rest = range(removed + 1, num_blocks)
            output = run_blocks_from(self._stack, hidden_states, record.calls, rest)
            self._totals[removed] += total_cross_entropy(self._stack.logits(output), targets).item()

    def result(self) -> torch.Tensor:
        """Loss increase per removed block, nats per predicted token, float64 (L,)."""
        if self.loss.num_tokens == 0:
            raise no_tokens_error()
        return (self._totals - self.loss.total_loss) / self.loss.num_tokens

    def _check_head(self, record: BlockRecord, loss: EvaluationLoss, targets: torch.Tensor) -> None:
        rebuilt = total_cross_entropy(self._stack.logits(record.hidden_states[-1]), targets).item()
        if abs(rebuilt - loss.total_loss) > 1e-4 * abs(loss.total_loss):
            raise InputError(
                "cannot remove layers from this model: its logits are not head(final_norm(output of the last block)) "
                f"(total loss {loss.total_loss:.6g}, rebuilt {rebuilt:.6g}); models that cap, scale or project what "
                "goes into or comes out of the head are not supported"
            )
        self._checked = loss.num_tokens > 0


def removal_loss_increase(
    model: nn.Module, batches: Iterable[TokenBatch], *, autocast_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """dP(l) = loss without block l - loss with all blocks; positive means that removing block l does harm.

    Performance drop of Mix-LN (Li, Yin, Liu 2024, arXiv 2412.13795), section 2, with P = validation loss
    (`evaluation_loss`). The model itself stays as it is.

    Args:
        model: a causal language model that `find_block_stack` knows.
        batches: (batch, sequence) tokens; read through once.
        autocast_dtype: autocast to this; None: the model's own precision.

    Returns:
        float64 (L,), nats per predicted token.

    Raises:
        InputError: no position with a target; a model whose blocks are not found, or whose logits are not
            head(final_norm(output of the last block)).
    """
    stack = find_block_stack(model)
    losses = RemovalLosses(stack)
    with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype):
        for batch in batches:
            record, loss = recorded_loss(model, stack, batch)
            losses.update(record, loss, batch.targets)
    return losses.result()


def recorded_loss(model: nn.Module, stack: BlockStack, batch: TokenBatch) -> tuple[BlockRecord, EvaluationLoss]:
    """Block record and loss of one batch from one forward pass; mode, autocast and gradients are the caller's."""
    with recording(stack) as record:
        loss = batch_loss(batch_logits(model, batch), batch.targets)
    return record, loss
