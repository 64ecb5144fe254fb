"""Direct logit attribution: what each component adds to the logit of an answer, and what removing it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixln.errors import InputError
from mixln.interpret.readout import Reading, read
from mixln.interpret.stream import Component, Stream, find_stream, precise
from mixln.measure.forward import model_device, on_device
from mixln.modes import evaluation_mode


@dataclass(frozen=True)
class LogitAttribution:
    """The logit difference logit[answer] - logit[distractor] at some positions, taken apart. All in logits, float64.

    Attributes:
        components: embedding, then attention and feed-forward, block by block.
        contribution: c, (rows, positions, components), by the final norm with its scale held.
        direct_effect: DE, of the same shape, by the final norm computed anew.
        bias: (rows, positions), of the final norm and the head together.
        logit_difference: (rows, positions), by the model's own logits.
    """

    components: list[Component]
    contribution: Tensor
    direct_effect: Tensor
    bias: Tensor
    logit_difference: Tensor

    @property
    def sum_error(self) -> Tensor:
        """|sum_i c_i + bias - logit difference|, (rows, positions): rounding, and nothing else."""
        return (self.contribution.sum(-1) + self.bias - self.logit_difference).abs()

    @property
    def gap(self) -> float:
        """sum |c_i - DE_i| / sum |DE_i|, over components and positions; 0 in a model without norms.

        The normalised mean absolute error of LN-free (Baroni et al. 2025), section on direct logit attribution.
        """
        return (self.error.sum() / self.direct_effect.abs().sum()).item()

    @property
    def error(self) -> Tensor:
        """|c_i - DE_i|, (rows, positions, components)."""
        return (self.contribution - self.direct_effect).abs()


def direct_logit_attribution(
    model: nn.Module,
    input_ids: Tensor,
    answers: Tensor,
    distractors: Tensor,
    positions: Tensor | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    stack: str | None = None,
) -> LogitAttribution:
    """Take logit differences apart into what each component of the model contributes directly.

        c_i  = (W_U[answer] - W_U[distractor]) . (gamma * P v_i / sigma)       v_i: output of component i
        DE_i = (W_U[answer] - W_U[distractor]) . (N(x) - N(x - v_i))           x: the stream before the final norm N

    Direct logit attribution c_i takes sigma, the scale of the final norm, for a constant; with the biases the c_i sum
    to the logit difference. The direct effect DE_i takes the component out of the final state and computes the
    norm anew: it is what "the effect of the component" means. Without norms both are one (LN-free: Baroni et al. 2025,
    arXiv 2507.02559, section on direct logit attribution).

    Args:
        model: a causal language model whose stream is a plain sum: Pre-LN in all its forms (also with frozen scales),
            or without norms; of this library or stock.
        input_ids: (rows, tokens), int64.
        answers: (rows,) or (rows, positions), the token whose logit counts.
        distractors: of the same shape, the token whose logit is taken off.
        positions: of the same shape, where the logits are read; None: at the last token.
        arguments: further ones of the model, such as `attention_mask`.
        stack: the name of the list of blocks, where it is ambiguous.

    Raises:
        InputError: shapes do not fit, or the stream is not such a sum (Post-LN, caps on the logits ...); says why.
    """
    rows, tokens = input_ids.shape
    if positions is None:
        positions = torch.full_like(answers, tokens - 1)
    shapes = {tuple(tensor.shape) for tensor in (answers, distractors, positions)}
    if len(shapes) != 1 or answers.ndim not in (1, 2) or len(answers) != rows:
        raise InputError(
            f"answers, distractors and positions must all be (rows,) or (rows, positions) for {rows} rows of tokens, "
            f"and are {tuple(answers.shape)}, {tuple(distractors.shape)} and {tuple(positions.shape)}"
        )
    answers, distractors, positions = (tensor.reshape(rows, -1).cpu() for tensor in (answers, distractors, positions))
    given = on_device({"input_ids": input_ids, "use_cache": False, **(arguments or {})}, model_device(model))
    stream = find_stream(model, given, stack)
    return attribute(stream, read(stream, given), answers, distractors, positions)


def attribute(
    stream: Stream, reading: Reading, answers: Tensor, distractors: Tensor, positions: Tensor
) -> LogitAttribution:
    """As `direct_logit_attribution`, of a pass that has been made; all tokens (rows, positions)."""
    readout, final = reading.readout, reading.final
    parts = reading.record.components()
    rows = torch.arange(len(positions))[:, None]
    with torch.no_grad():
        direction = readout.direction(answers, distractors).to(readout.gain.device)
        bias = (direction * readout.offset).sum(-1) + readout.bias_difference(answers, distractors).to(direction)

    def said(states: Tensor) -> Tensor:
        at = rows.to(states.device), positions.to(states.device)
        return (precise(states[at]).to(direction) * direction).sum(-1)

    with evaluation_mode(stream.model), torch.no_grad():
        whole = said(readout.normalised(final))
        contribution, effect = [], []
        for part in parts.values():
            part = part.to(final.device)
            contribution.append(said(readout.held(part)))
            effect.append(whole - said(readout.normalised(final - part)))
    logits = precise(reading.logits[rows.to(final.device), positions.to(final.device)])
    chosen = logits.gather(-1, torch.stack((answers, distractors), -1).to(logits.device))
    return LogitAttribution(
        list(parts),
        torch.stack(contribution, -1).cpu(),
        torch.stack(effect, -1).cpu(),
        bias.cpu(),
        (chosen[..., 0] - chosen[..., 1]).cpu(),
    )
