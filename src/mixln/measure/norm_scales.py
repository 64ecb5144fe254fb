"""What norms divide by: the explanation of vanishing gradients in Mix-LN (Li, Yin, Liu 2024), equations 3 to 7."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mixln.measure.calls import watched
from mixln.measure.estimates import DocumentSums, Estimates
from mixln.measure.observation import Measure, Observation
from mixln.measure.sublayers import SUBLAYERS, SublayerFinder, silenced
from mixln.measure.sums import at_least_float32
from mixln.models.anatomy import BlockStack

NormKey = tuple[int, str]
"""Where a norm is: the index of its block (from 0), and its name in the block."""


@dataclass(frozen=True)
class NormScale:
    """One norm of one block.

    Attributes:
        block: its number, from 1.
        name: in the block, such as `input_layernorm`.
        is_on_stream: whether it normalises the residual stream itself (Post-LN), not what goes into or comes out of a
            sublayer.
        sigma: shape (), mean over tokens of the standard deviation over channels of its input.
    """

    block: int
    name: str
    is_on_stream: bool
    sigma: Estimates


class NormScales(Measure):
    """sigma of every norm, and the product of 1 / sigma over those that stand on the stream.

    A Post-LN sublayer is y = LN(x + F(x)), and with P the projection that LN's Jacobian contains,

        dy/dx = P / sigma * (I + dF/dx),      sigma = standard deviation over channels of x + F(x)     (eq. 3, 5)

    so a gradient on its way from the last layer to the first is divided by the product of all sigma (eq. 6), which
    vanishes if they are above 1. In Pre-LN, y = x + F(LN(x)), the identity is not divided (eq. 4, 7). sigma is taken
    about the mean for every kind of norm; an RMSNorm divides by the root mean square, which is no smaller.

    Whether a norm stands on the stream is found out: with the block's sublayers silenced, the block's output depends on
    the outputs of just these. Norms of other widths than the stream's (those of queries and keys) are left out.

    Args:
        sublayers: if they are found already.
    """

    reads_tokens = True
    replays_blocks = True

    def __init__(self, sublayers: SublayerFinder | None = None) -> None:
        self._finder = sublayers or SublayerFinder()
        self._sigmas: dict[NormKey, torch.Tensor] = {}
        self._is_on_stream: dict[NormKey, bool] = {}
        self._sums = DocumentSums()

    @contextmanager
    def watch(self, stack: BlockStack) -> Iterator[None]:
        """Keep sigma of each token at each norm."""
        self._sigmas.clear()
        with self._finder.watch(stack), watched(_norms(stack), self._keep_sigma):
            yield

    def _keep_sigma(self, key: NormKey, args: tuple[Any, ...], _output: Any) -> None:
        self._sigmas[key] = at_least_float32(args[0]).std(-1, correction=0).cpu()

    def update(self, observation: Observation) -> None:
        """Count a batch."""
        counted = observation.batch.counted_in(observation.hidden_states[0]).cpu()
        if not self._is_on_stream:
            for key, norm in _norms(observation.stack):
                # a norm over heads has (rows, tokens, heads) or another order of them here
                if key in self._sigmas and self._sigmas[key].numel() == counted.numel():
                    self._is_on_stream[key] = self._stands_on_stream(observation, key, norm)
        sigmas = [self._sigmas[key].reshape(counted.shape).double() for key in self._is_on_stream]
        logarithms = [
            sigma.log() for sigma, is_on_stream in zip(sigmas, self._is_on_stream.values(), strict=True) if is_on_stream
        ]
        total = sum(logarithms, torch.zeros(counted.shape, dtype=torch.float64))
        values = torch.stack([*sigmas, -total], dim=-1)
        sums = torch.where(counted[..., None], values, 0.0).sum(1)
        self._sums.update(sums, counted.sum(1), observation.batch.documents)

    def _stands_on_stream(self, observation: Observation, key: NormKey, norm: nn.Module) -> bool:
        index = key[0]
        block, call = observation.stack.layers[index], observation.record.calls[index]
        # the first row shows it
        inputs: list[torch.Tensor] = []
        with ExitStack() as without_sublayers:
            for sublayer in SUBLAYERS:
                without_sublayers.enter_context(silenced(self._finder.branch(index, sublayer)))
            x = observation.hidden_states[index]
            with norm.register_forward_pre_hook(lambda _norm, args: inputs.append(args[0])):
                plain = call.replay(block, x)
            with silenced(norm):
                without_norm = call.replay(block, x)
        # behind a silenced sublayer a norm is given zeros, and its bias reaches the stream all the same
        return bool(inputs[0].any()) and not torch.equal(plain, without_norm)

    def scales(self) -> list[NormScale]:
        """Every norm, block by block.

        Raises:
            InputError: no token was counted.
        """
        found = self._sums.estimate()
        return [
            NormScale(block + 1, name, is_on_stream, found.column(index))
            for index, ((block, name), is_on_stream) in enumerate(self._is_on_stream.items())
        ]

    def log_gradient_factor(self) -> Estimates:
        """Mean over tokens of log prod 1 / sigma over the norms on the stream, shape (); 0 in Pre-LN.

        Raises:
            InputError: no token was counted.
        """
        return self._sums.estimate().column(-1)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation over channels, by the name of its class and its one-dimensional weights."""
    return "norm" in type(module).__name__.lower() and all(weight.ndim <= 1 for weight in module.parameters())


def _norms(stack: BlockStack) -> Iterator[tuple[NormKey, nn.Module]]:
    for index, block in enumerate(stack.layers):
        for name, module in block.named_modules():
            if is_norm(module):
                yield (index, name), module
