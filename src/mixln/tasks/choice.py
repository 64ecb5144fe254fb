"""Which form of the next-token loss is right for a model, found by running it on rows of several documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mixln.data import Rows
from mixln.errors import InputError
from mixln.measure.forward import call_model
from mixln.measure.row_limit import longest_row, probe_tokens
from mixln.models.encoding import IGNORED_TARGET
from mixln.models.foreign import ModelCallError, naming_failures
from mixln.modes import evaluation_mode
from mixln.tasks.objective import CausalLanguageModelObjective
from mixln.tasks.objectives import (
    DocumentRowsObjective,
    LogitsObjective,
    SingleDocumentsObjective,
    summed_loss,
)

_PROBED_TOKENS = 32

_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.1
"""Of losses and gradients, relative; half a wrong document is off by much more."""

_NOTHING = 1e-6
"""Of a gradient, relative: so little is rounding."""

_DATA_ROWS = 4

_ROWS = (((1, 4), 1), ((2,), 1), ((5,), 0))
"""Of the rows of a probe: where documents end, in eighths, and which of them is looked at."""


def choose_objective(
    model: PreTrainedModel, length: int = _PROBED_TOKENS, *, separate: bool = True, data: Rows | None = None
) -> type[CausalLanguageModelObjective]:
    """Return the fastest form of the next-token loss that gives each packed document the loss that it has alone.

    Some documents are looked at, in rows with others: their loss, and the gradients with respect to the embedding of
    every token. The gradients tell what a loss alone would not: of a model with small weights all losses are near the
    logarithm of its vocabulary, whatever it reads. With respect to the tokens of other documents they must be 0.

    Args:
        model: a causal language model, with its weights; it is run, on its device.
        length: tokens of a row.
        separate: whether documents are to be kept apart; otherwise a row is one text.
        data: rows on some of which the choice must be right too: what a model attends to can depend on the tokens.

    Raises:
        InputError: the model cannot read so many tokens, it sees what it is to predict, or no form is right for it.
    """
    name = f"a {type(model).__name__}"
    if (longest := longest_row(model, length)) < length:
        raise InputError(f"{name} takes no rows of {length} tokens: lower the sequence length to {longest} or less")
    probe = _Probe(model, length, separate=separate)
    reasons: list[str] = []
    with evaluation_mode(model), naming_failures(f"{name} cannot be run on {length} tokens"):
        if not _looks_back_only(model, length):
            raise InputError(f"{name} sees the whole text, also the token to predict, so it has no next-token loss")
        expected = probe.observe(SingleDocumentsObjective)
        for kind in _candidates(model):
            try:
                with naming_failures("this form of the loss cannot be computed"):
                    found = probe.observe(kind)
            except InputError as error:
                reasons.append(error.reason if isinstance(error, ModelCallError) else str(error))
                continue
            if probe.agree(found, expected) and (data is None or _agree_on_rows(model, kind, data)):
                return kind
            reasons.append(f"a loss of {found[0].item():.4f} instead of {expected[0].item():.4f}")
    raise InputError(
        f"{name} gives documents in rows of {length} tokens losses that they do not have alone "
        f"({'; '.join(reasons)}), so it cannot be trained here"
    )


LossAndGradients = tuple[Tensor, Tensor]
"""A loss, and its gradients with respect to the embeddings of some tokens, (tokens, hidden)."""


class _Probe:
    """Rows of several documents, one of which is looked at in each.

    Args:
        model: any language model.
        length: tokens of a row.
        separate: whether a row is of several documents.
    """

    def __init__(self, model: PreTrainedModel, length: int, *, separate: bool) -> None:
        self._model = model
        rows = _ROWS if separate else (((), 0),)
        self._tokens = probe_tokens(model, length * len(rows)).reshape(-1, length)
        self._positions = torch.arange(length).repeat(len(rows), 1).to(self._tokens.device)
        self._targets = torch.full_like(self._tokens, IGNORED_TARGET)
        own: list[Tensor] = []
        for row, (cuts, looked_at) in enumerate(rows):
            borders = [0, *sorted({length * cut // 8 for cut in cuts} - {0}), length]
            for border in borders[1:-1]:
                self._positions[row, border:] = torch.arange(length - border)
            looked_at = min(looked_at, len(borders) - 2)  # of a row of few tokens
            start, end = borders[looked_at], borders[looked_at + 1]
            self._targets[row, start : end - 1] = self._tokens[row, start + 1 : end]
            own.append(self._tokens[row, start:end])
        self._ids = self._tokens.unique()
        self._is_other = ~torch.isin(self._ids, torch.cat(own))

    def observe(self, kind: type[CausalLanguageModelObjective]) -> LossAndGradients:
        """Return the loss of the documents looked at, and the gradients of every token."""
        objective = kind(self._model)
        return observe(self._model, self._ids, lambda: objective(self._tokens, self._positions, self._targets))

    def agree(self, found: LossAndGradients, expected: LossAndGradients) -> bool:
        """Whether two forms give the same, and the first one no other document's tokens a say."""
        tolerance = _TOLERANCES.get(self._model.dtype, _LOW_PRECISION_TOLERANCE)
        size = expected[1].norm()
        return (
            torch.allclose(found[0], expected[0], rtol=tolerance)
            and bool((found[1] - expected[1]).norm() <= tolerance * size)
            and bool(found[1][self._is_other].norm() <= _NOTHING * size)
        )


@torch.no_grad()
def _agree_on_rows(model: PreTrainedModel, kind: type[CausalLanguageModelObjective], data: Rows) -> bool:
    """Whether a form gives some rows of data the loss of their documents alone."""
    tolerance = _TOLERANCES.get(model.dtype, _LOW_PRECISION_TOLERANCE) / 10
    batch = data.batch(range(min(_DATA_ROWS, len(data)))).to(model.device)
    rows = range(len(batch.input_ids))
    found, expected = (
        torch.stack(
            [form(*(one[row, None] for one in (batch.input_ids, batch.position_ids, batch.targets))) for row in rows]
        )
        for form in (kind(model), SingleDocumentsObjective(model))
    )
    return torch.allclose(found, expected, rtol=tolerance)


def observe(model: PreTrainedModel, ids: Tensor, run: Callable[[], Tensor]) -> LossAndGradients:
    """Return a loss and its gradients with respect to the embeddings of some tokens, wherever in rows they stand.

    Args:
        model: whose embedding is looked up in `run`.
        ids: of the tokens, rising.
        run: computes the loss.
    """
    looked_up: list[tuple[Tensor, Tensor]] = []

    def keep(_module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        looked_up.append((arguments[0], output.detach().requires_grad_()))
        return looked_up[-1][1].clone()  # some models change it in place

    with torch.enable_grad(), model.get_input_embeddings().register_forward_hook(keep):
        loss = run()
        gradients = torch.autograd.grad(loss, [output for _, output in looked_up], allow_unused=True)
    total = looked_up[0][1].new_zeros(len(ids), looked_up[0][1].shape[-1], dtype=torch.float32)
    for (tokens, _), gradient in zip(looked_up, gradients, strict=True):
        if gradient is not None:
            flat = tokens.flatten()
            known = torch.isin(flat, ids)
            total.index_add_(0, torch.searchsorted(ids, flat[known]), gradient.flatten(0, -2)[known].float())
    return loss.detach(), total


def _looks_back_only(model: PreTrainedModel, length: int) -> bool:
    """Whether no prediction depends on what follows in the text."""
    tokens, middle = probe_tokens(model, length), length // 2
    if middle == 0:
        return True
    later = tokens[0, middle:].unique()
    later = later[~torch.isin(later, tokens[0, :middle])]

    def early_loss() -> Tensor:
        logits = call_model(model, {"input_ids": tokens}).logits
        return summed_loss(logits[:, :middle], tokens.roll(-1, 1)[:, :middle])

    _, gradients = observe(model, tokens.unique(), early_loss)
    return bool(gradients[torch.isin(tokens.unique(), later)].norm() <= _NOTHING * gradients.norm())


def _candidates(model: PreTrainedModel) -> Sequence[type[CausalLanguageModelObjective]]:
    packed = (CausalLanguageModelObjective,) if _has_plain_head(model) else ()
    return (*packed, LogitsObjective, DocumentRowsObjective, SingleDocumentsObjective)


def _has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are the decoder's last hidden states through the head's matrix and bias, to the last bit."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    seen: dict[str, Tensor] = {}

    def watch(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update(input=arguments[0], output=output)

    def watch_decoder(_module: nn.Module, _arguments: Any, output: Any) -> None:
        seen["hidden_states"] = output.last_hidden_state

    length = min(_PROBED_TOKENS, getattr(model.config, "max_position_embeddings", None) or _PROBED_TOKENS)
    try:
        with naming_failures("the head cannot be run alone"):
            hooks = head.register_forward_hook(watch), model.get_decoder().register_forward_hook(watch_decoder)
            with hooks[0], hooks[1], evaluation_mode(model), torch.no_grad():
                logits = model(input_ids=probe_tokens(model, length), use_cache=False).logits
            return torch.equal(seen["output"], logits) and torch.equal(seen["input"], seen["hidden_states"])
    except ModelCallError:
        return False
