"""From the end of the residual stream to the logits: the final norm as a matrix times a scale, and the head.

    logits = W y + b,    y = gamma * P x / sigma(x) + beta

P takes the mean away (LayerNorm) or is the identity (RMSNorm); without a final norm y = x. With sigma held at the value
that it has for a token, logits are linear in x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixln.errors import InputError
from mixln.interpret.stream import Stream, StreamRecord, described, precise, rounding
from mixln.measure.calls import watched
from mixln.measure.forward import call_model
from mixln.measure.sums import at_least_float32
from mixln.modes import evaluation_mode


@dataclass(frozen=True)
class Readout:
    """What comes after the last block, for the tokens of one forward pass.

    Attributes:
        norm: the final norm; None if there is none.
        gain: gamma, (hidden,).
        offset: beta, (hidden,).
        centered: whether P takes the mean away.
        inverse_scale: 1 / sigma of each token, (rows, tokens, 1).
        head: W, (vocabulary, hidden).
        head_bias: b, (vocabulary,); zeros without.
    """

    norm: nn.Module | None
    gain: Tensor
    offset: Tensor
    centered: bool
    inverse_scale: Tensor
    head: Tensor
    head_bias: Tensor

    def normalised(self, final: Tensor) -> Tensor:
        """y of other final states (rows, tokens, hidden) of the same tokens, sigma computed anew."""
        return final if self.norm is None else self.norm(final)

    def held(self, part: Tensor) -> Tensor:
        """gamma * P v / sigma of a part v of the final states (rows, tokens, hidden), sigma held; without beta."""
        part = precise(part)
        return self.gain * (part - part.mean(-1, keepdim=True) if self.centered else part) * self.inverse_scale

    def direction(self, answers: Tensor, distractors: Tensor) -> Tensor:
        """W[answer] - W[distractor], (..., hidden), in float64 where the device has it."""
        return _rows(self.head, answers) - _rows(self.head, distractors)

    def bias_difference(self, answers: Tensor, distractors: Tensor) -> Tensor:
        """b[answer] - b[distractor], of the tokens' shape."""
        return _rows(self.head_bias, answers) - _rows(self.head_bias, distractors)

    def logits(self, normalised: Tensor) -> Tensor:
        """W y + b, of (..., hidden), in float32 at least."""
        head = at_least_float32(self.head)
        return normalised.to(head) @ head.T + self.head_bias


class Reading(NamedTuple):
    """A forward pass from the embedding to the logits.

    Attributes:
        record: what was written to the stream.
        readout: what comes after it.
        logits: that the model returned.
    """

    record: StreamRecord
    readout: Readout
    logits: Tensor

    @property
    def final(self) -> Tensor:
        """x_(L+1), (rows, tokens, hidden)."""
        return self.record.blocks.hidden_states[-1]


def read(stream: Stream, arguments: Mapping[str, Any]) -> Reading:
    """Run a language model once, dropout off and without gradients, and see what it is made of.

    Args:
        stream: of a causal language model.
        arguments: of the model, on its device.

    Raises:
        InputError: the stream is no plain sum, the final norm is not one scale for each token, or the logits are not a
            matrix times the normalised state.
    """
    model = stream.model
    head = _head(model)
    with evaluation_mode(model), torch.no_grad():
        with _watching(stream, head) as tail, stream.recording() as record:
            logits: Tensor = call_model(model, arguments).logits
        stream.check_sum(record)
        final = record.blocks.hidden_states[-1]
        readout = _fit(stream, final, tail, head)
        shown = readout.logits(tail.head_inputs[-1][:1, -1])
        off = (shown - at_least_float32(logits[:1, -1])).norm() / shown.norm()
        if not off <= rounding(logits.dtype):
            raise InputError(
                f"the logits of {described(model)} are not its head's matrix times the normalised state (off by "
                f"{off:.2g}): a cap or a scale follows the head, so they are not a sum over components"
            )
    return Reading(record, readout, logits)


class _Tail(NamedTuple):
    """What went through the modules outside of the blocks that map states to states, and into the head."""

    calls: list[tuple[nn.Module, Tensor, Tensor]]
    head_inputs: list[Tensor]


@contextmanager
def _watching(stream: Stream, head: nn.Module) -> Iterator[_Tail]:
    tail, inside = _Tail([], []), {head, *stream.stack.layers.modules()}
    around = [(one, one) for one in stream.model.modules() if one not in inside and next(one.children(), None) is None]

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and args[0].shape == output.shape:
            tail.calls.append((module, args[0], output))

    with watched(around, note), watched([(None, head)], lambda _, args, _output: tail.head_inputs.append(args[0])):
        yield tail


def _rows(table: Tensor, tokens: Tensor) -> Tensor:
    return precise(table[tokens.to(table.device)])


def _head(model: nn.Module) -> nn.Module:
    get: Any = getattr(model, "get_output_embeddings", None)
    head = None if get is None else get()
    if head is None:
        raise InputError(f"a {type(model).__name__} has no language-model head: give one of a class ...ForCausalLM")
    return head


def _fit(stream: Stream, final: Tensor, tail: _Tail, head: nn.Module) -> Readout:
    state, given, weight = precise(final), tail.head_inputs[-1], head.get_parameter("weight")
    bias = weight.new_zeros(len(weight)) if (own := getattr(head, "bias", None)) is None else own
    if torch.equal(final, given):
        ones = torch.ones_like(state[0, 0])
        return Readout(None, ones, ones * 0, False, torch.ones_like(state[..., :1]), weight, bias)
    ends = (one for one, before, after in tail.calls if torch.equal(before, final) and torch.equal(after, given))
    if (norm := next(ends, None)) is None:
        raise InputError(
            f"there is more than one norm between the last block and the head of {described(stream.model)}, so its "
            "logits are not a sum over components"
        )
    gain, offset, centered, inverse_scale, off = fit_norm(norm, state, precise(given))
    if not off <= rounding(final.dtype):
        raise InputError(
            f"the final norm of {described(stream.model)} ({type(norm).__name__}) is not weight * x / scale with one "
            f"scale for each token (off by {off:.2g}): it cannot be held fixed. LayerNorm and RMSNorm can"
        )
    return Readout(norm, gain, offset, centered, inverse_scale, weight, bias)


def fit_norm(norm: nn.Module, state: Tensor, output: Tensor) -> tuple[Tensor, Tensor, bool, Tensor, float]:
    """gamma, beta, whether P takes the mean away, 1 / sigma of each token, and the largest relative error they leave.

    Some norms keep gamma - 1 as their weight (Gemma, Qwen3-Next). Which of the forms a norm has, eps and frozen scales
    are told by what it does, so its class need not be known.

    Args:
        norm: any module.
        state: what it was given, (rows, tokens, hidden), in float64.
        output: what it gave.
    """
    ones = torch.ones_like(state[0, 0])
    weight, offset = (
        default if (own := getattr(norm, name, None)) is None or own.shape != ones.shape else precise(own)
        for name, default in (("weight", ones), ("bias", ones * 0))
    )
    fits: list[tuple[float, Tensor, bool, Tensor]] = []
    for centered in (False, True):
        projected = state - state.mean(-1, keepdim=True) if centered else state
        for gain in (weight, 1 + weight):
            inverse_scale, off = _fit_scale(gain * projected, output - offset)
            fits.append((off, gain, centered, inverse_scale))
    off, gain, centered, inverse_scale = min(fits, key=lambda fit: fit[0])
    return gain, offset, centered, inverse_scale, off


def _fit_scale(unscaled: Tensor, scaled: Tensor) -> tuple[Tensor, float]:
    """1 / sigma of each token by least squares, (rows, tokens, 1), and the largest relative error that it leaves."""
    squares = unscaled.square().sum(-1, keepdim=True).clamp_min(1e-300)
    inverse_scale = (unscaled * scaled).sum(-1, keepdim=True) / squares
    rest = (scaled - inverse_scale * unscaled).norm(dim=-1) / scaled.norm(dim=-1).clamp_min(1e-300)
    return inverse_scale, rest.max().item()
