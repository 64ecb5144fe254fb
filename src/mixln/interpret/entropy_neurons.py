"""Entropy neurons of the last feed-forward: they set how sure a model is, by the scale of its final norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixln.errors import InputError
from mixln.interpret.readout import Reading, Readout, read
from mixln.interpret.stream import Stream, described, find_stream, precise
from mixln.measure.batches import ModelBatch
from mixln.measure.calls import watched
from mixln.measure.estimates import DocumentSums, Estimates
from mixln.measure.forward import model_device
from mixln.measure.sums import at_least_float32, no_tokens_error
from mixln.models.encoding import IGNORED_TARGET
from mixln.models.transformers_internals import Conv1D
from mixln.modes import evaluation_mode

_LOGITS_AT_ONCE = 2**24
"""Numbers, of tokens or neurons times vocabulary, that are in memory at a time."""


@dataclass(frozen=True)
class EntropyNeurons:
    """The chosen neurons, and what mean-ablating them does; estimates have intervals over documents.

    Attributes:
        layer: number of their block, from 1.
        neurons: their indices in the feed-forward's hidden layer, the largest weight norm first; k of them.
        weight_norm: (k,), ||w_out||.
        logit_variance: (k,), see `entropy_neurons`.
        entropy: of the whole model's output distribution, (), nats per token.
        loss: of the whole model, (), nats per token.
        entropy_change: (k + 1,), nats per token, of ablating each alone, and last all together.
        entropy_change_held: the same with the final norm's scale held at what it is in the whole model.
        loss_change: (k + 1,), nats per token.
        loss_change_held: the same with the scale held.
    """

    layer: int
    neurons: list[int]
    weight_norm: Tensor
    logit_variance: Tensor
    entropy: Estimates
    loss: Estimates
    entropy_change: Estimates
    entropy_change_held: Estimates
    loss_change: Estimates
    loss_change_held: Estimates


def entropy_neurons(
    model: nn.Module,
    batches: Sequence[ModelBatch],
    *,
    count: int = 6,
    share: float = 0.05,
    stack: str | None = None,
) -> EntropyNeurons:
    """Choose neurons of the last feed-forward with large weights and little effect on logits, and mean-ablate them.

        LogitVar_i = Var over the vocabulary of  (u_v . w_i) / (||u_v|| ||w_i||),     u = W_U diag(gamma) P

    w_i is the neuron's output weights (column of the down projection; of a gated feed-forward too), u_v a token's row
    of the head times the final norm's own weights. Of the `share` of neurons with the lowest LogitVar, the `count` with
    the largest ||w_i|| are chosen (Stolfo et al. 2024, arXiv 2406.16254, section 3). Such neurons change hardly any
    logit against the others; they act through the scale of the final norm. Ablation replaces the neuron's activation
    by its mean over all counted tokens. With the scale held, the effect through the norm is gone; without norms both
    effects are the same (LN-free: Baroni et al. 2025, arXiv 2507.02559, on confidence neurons).

    Args:
        model: a causal language model in Pre-LN or without norms; its last feed-forward ends in a linear layer.
        batches: with targets; run through twice.
        count: k, of neurons.
        share: of neurons among which the largest are taken, in (0, 1]; at least `count` of them.
        stack: the name of the list of blocks, where it is ambiguous.

    Raises:
        InputError: numbers out of range, no counted token, a stream that is no plain sum, or a last feed-forward that
            does not write to the stream as a linear layer (a mixture of experts, a norm after it).
    """
    if not batches:
        raise no_tokens_error()
    if count < 1 or not 0 < share <= 1:
        raise InputError(f"count must be at least 1 and share in (0, 1], not {count} and {share}")
    device = model_device(model)
    stream = find_stream(model, batches[0].rows(0, 1).arguments_on(device), stack)
    weights = _output_weights(stream)
    total, tokens, readout = torch.zeros(len(weights), dtype=torch.float64), 0, None
    for batch in batches:
        activations, reading = _activations(stream, batch)
        counted = batch.counted_in(reading.final)
        total += precise(activations)[counted.to(activations.device)].sum(0).cpu()
        tokens, readout = tokens + int(counted.sum()), reading.readout
    if not tokens or readout is None:
        raise no_tokens_error()
    neurons, norms, variances = _select(readout, weights, count, share)
    ablation = _Ablation(stream, weights[neurons], neurons, (total / tokens)[neurons])
    for batch in batches:
        ablation.update(batch)
    whole, changes = ablation.whole.estimate(), ablation.changes.estimate()
    return EntropyNeurons(
        len(stream.writers),
        neurons.tolist(),
        norms,
        variances,
        whole.column(0),
        whole.column(1),
        *(changes.row(held).column(kind) for held, kind in ((0, 0), (1, 0), (0, 1), (1, 1))),
    )


def _output_weights(stream: Stream) -> Tensor:
    """w_out of every neuron of the last feed-forward, (neurons, hidden)."""
    writer = stream.writers[-1]["feed_forward"]
    if isinstance(writer, Conv1D):
        return writer.weight.detach()
    if isinstance(writer, nn.Linear):
        return writer.weight.detach().T
    raise InputError(
        f"the last feed-forward of {described(stream.model)} writes to the stream through a {type(writer).__name__}, "
        "not a linear layer: its neurons have no output weights of their own"
    )


def _activations(stream: Stream, batch: ModelBatch) -> tuple[Tensor, Reading]:
    """Activations of the last feed-forward's neurons, (rows, tokens, neurons), and their pass."""
    arguments: dict[str, Any] = batch.arguments_on(model_device(stream.model))
    kept: list[Tensor] = []
    with watched([(None, stream.writers[-1]["feed_forward"])], lambda _, args, _output: kept.append(args[0])):
        reading = read(stream, arguments)
    activations = kept[-1]
    return activations.reshape(*reading.final.shape[:2], -1), reading


def _select(readout: Readout, weights: Tensor, count: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, ||w_out|| and LogitVar of the chosen, (k,) each on the CPU."""
    if count > len(weights):
        raise InputError(f"count is {count}, and the last feed-forward has {len(weights)} neurons: ask for fewer")
    weights = at_least_float32(weights)
    head = at_least_float32(readout.head.detach()) * readout.gain.to(readout.head.device, torch.float32)
    if readout.centered:
        head = head - head.mean(-1, keepdim=True)
    norms = weights.norm(dim=-1)
    head = nn.functional.normalize(head, dim=-1)
    # of a large model, all neurons times the whole vocabulary would not fit
    parts = nn.functional.normalize(weights, dim=-1).split(max(1, _LOGITS_AT_ONCE // len(head)))
    variances = torch.cat([(part.to(head) @ head.T).var(-1, correction=0) for part in parts]).to(norms.device)
    candidates = variances.argsort(stable=True)[: max(count, round(share * len(weights)))]
    chosen = candidates[norms[candidates].argsort(descending=True, stable=True)[:count]]
    return chosen.cpu(), norms[chosen].cpu(), variances[chosen].cpu()


class _Ablation:
    """Sums over the tokens of each document: of entropy and loss, and of what ablation changes."""

    def __init__(self, stream: Stream, weights: Tensor, neurons: Tensor, means: Tensor) -> None:
        self._stream, self._weights, self._neurons, self._means = stream, weights, neurons, means
        self.whole, self.changes = DocumentSums(), DocumentSums()

    @torch.no_grad()
    def update(self, batch: ModelBatch) -> None:
        """Count a batch. What a neuron writes is taken out of the last state; nothing else depends on it."""
        activations, reading = _activations(self._stream, batch)
        readout, final = reading.readout, reading.final
        if batch.targets is None:
            raise InputError("entropy neurons are judged by entropy and loss: give batches with targets")
        counted, targets = batch.counted_in(final), batch.targets.to(final.device)
        excess = activations[..., self._neurons.to(activations.device)].to(final.device)
        excess = excess - self._means.to(excess)
        weights = self._weights.to(excess)
        number = len(self._neurons)
        written = [excess[..., [index]] * weights[index] for index in range(number)]
        written.append(excess @ weights)
        totals, helds = [], []
        with evaluation_mode(self._stream.model):
            own = readout.normalised(final)
            whole = _entropy_and_loss(readout, own, counted, targets)
            for part in written:
                totals.append(_entropy_and_loss(readout, readout.normalised(final - part), counted, targets) - whole)
                without = precise(own) - readout.held(part)
                helds.append(_entropy_and_loss(readout, without, counted, targets) - whole)
        counts = counted.sum(1)
        self.whole.update(whole, counts, batch.documents)
        changes = torch.stack((torch.stack(totals, 1), torch.stack(helds, 1)), 1)
        self.changes.update(changes, counts, batch.documents)


def _entropy_and_loss(readout: Readout, normalised: Tensor, counted: Tensor, targets: Tensor) -> Tensor:
    """Sums over each row's counted tokens of -sum p log p and of -log p[target], in nats: (rows, 2), float64, CPU."""
    rows, positions = counted.nonzero(as_tuple=True)
    sums = torch.zeros(len(counted), 2, dtype=torch.float64)
    size = max(1, _LOGITS_AT_ONCE // len(readout.head))
    for some, places in zip(rows.split(size), positions.split(size), strict=True):
        logarithms = readout.logits(normalised[some.to(normalised.device), places.to(normalised.device)])
        logarithms = logarithms.log_softmax(-1)
        entropy = -(logarithms.exp() * logarithms).sum(-1)
        wanted = targets[some, places]
        # a counted position without a target has no loss
        losses = nn.functional.nll_loss(
            logarithms, wanted.to(logarithms.device), ignore_index=IGNORED_TARGET, reduction="none"
        )
        sums.index_add_(0, some.cpu(), torch.stack((entropy, losses), -1).double().cpu())
    return sums
