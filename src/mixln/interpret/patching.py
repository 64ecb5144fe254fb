"""Activation patching, and attribution patching: its linear approximation from one backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixln.errors import InputError
from mixln.interpret.prompts import PromptPair
from mixln.interpret.stream import Stream, find_stream, precise
from mixln.measure.comparison import difference, main_output, rounding
from mixln.measure.forward import call_model, model_device
from mixln.measure.observation import Tick, no_tick
from mixln.measure.recording import recording, run_blocks, run_tail
from mixln.measure.sublayers import SUBLAYERS, replaced_output
from mixln.measure.sums import at_least_float32
from mixln.modes import evaluation_mode


@dataclass(frozen=True)
class PatchingEffects:
    """How a clean activation in the corrupted run changes the logit difference, measured and by its gradient.

    Attributes:
        activation: (layers, 2, positions), float64, in logits: by activation patching; attention, then feed-forward.
            Positions begin at the first difference of the prompts: before it, every activation is the same.
        attribution: of the same shape, by attribution patching.
        first_position: the number of the first of these positions, from 0.
        clean: logit difference on the clean prompt.
        corrupted: logit difference on the corrupted prompt.
    """

    activation: Tensor
    attribution: Tensor
    first_position: int
    clean: float
    corrupted: float

    @property
    def correlation(self) -> float:
        """Pearson's r of the two over all components and positions; nan if one of them is the same everywhere."""
        effects = torch.stack((self.activation.flatten(), self.attribution.flatten()))
        return torch.corrcoef(effects)[0, 1].item()

    @property
    def slope(self) -> float:
        """Of the least-squares line from activation patching to attribution patching; 1 if they agree."""
        one, other = (effects.flatten() - effects.mean() for effects in (self.activation, self.attribution))
        return (one @ other / (one @ one)).item()

    @property
    def error(self) -> float:
        """sum |attribution - activation| / sum |activation|."""
        return ((self.attribution - self.activation).abs().sum() / self.activation.abs().sum()).item()


@dataclass(frozen=True)
class PatchingAgreement:
    """How well attribution patching tells activation patching, over prompts.

    Attributes:
        prompts: the effects of each.
    """

    prompts: list[PatchingEffects]

    @property
    def correlation(self) -> tuple[float, float]:
        """Mean and standard deviation over prompts of Pearson's r."""
        return _mean_and_deviation([one.correlation for one in self.prompts])

    @property
    def slope(self) -> tuple[float, float]:
        """Mean and standard deviation over prompts of the slope."""
        return _mean_and_deviation([one.slope for one in self.prompts])

    @property
    def error(self) -> tuple[float, float]:
        """Mean and standard deviation over prompts of the relative error."""
        return _mean_and_deviation([one.error for one in self.prompts])


def patching_agreement(model: nn.Module, pairs: Sequence[PromptPair], *, stack: str | None = None) -> PatchingAgreement:
    """Patch by activations and by gradients, and compare: once for each pair of prompts.

    Attribution patching (Nanda 2023; AtP*: Kramar et al. 2024, arXiv 2403.00745) is worth its one backward pass as far
    as it agrees with activation patching; norms are one of the reasons why it does not.

    Args:
        model: a causal language model whose blocks and sublayers are found; any placement.
        pairs: at least one, as `induction_prompts` makes them.
        stack: the name of the list of blocks, where it is ambiguous.

    Raises:
        InputError: there are no pairs, or the two prompts of one have not one length or do not differ.
    """
    if not pairs:
        raise InputError("there are no prompts to patch: give at least one pair")
    stream = stream_for(model, pairs[0], stack)
    return PatchingAgreement([patching_effects(stream, pair) for pair in pairs])


def patching_effects(stream: Stream, pair: PromptPair, tick: Tick = no_tick) -> PatchingEffects:
    """Both kinds of patching of one pair; `tick` is called for each sublayer of each block."""
    first, model = pair.first_difference(), stream.model
    clean_outputs, clean = _observed(stream, pair.clean, pair)
    _, corrupted = _observed(stream, pair.corrupted, pair)
    with evaluation_mode(model):
        activation = _patched(stream, pair, clean_outputs, first, tick) - corrupted
        attribution = _gradient_effects(stream, pair, clean_outputs)[..., first:]
    return PatchingEffects(activation, attribution, first, clean, corrupted)


def activation_patching(model: nn.Module, pair: PromptPair, *, stack: str | None = None) -> Tensor:
    """Put one activation of the clean run into the corrupted run, and measure the change of the logit difference.

        effect[l, s, t] = d(corrupted run, with output of sublayer s of block l at position t as in the clean run)
                          - d(corrupted run),                       d = logit[answer] - logit[distractor] at the end

    Costs a forward pass for each of 2 L T components; blocks before the patched one are not run again.

    Args:
        model: a causal language model whose blocks and sublayers are found; any placement.
        pair: of prompts.
        stack: the name of the list of blocks, where it is ambiguous.

    Returns:
        (L, 2, T), float64, in logits: attention, then feed-forward. A sublayer's output is what it adds to the stream,
        or in Post-LN what the norm on the stream gets from it. Effects before the first difference are 0.

    Raises:
        InputError: the prompts have not one length or do not differ, or the blocks are not found.
    """
    stream, first = stream_for(model, pair, stack), pair.first_difference()
    clean_outputs, _ = _observed(stream, pair.clean, pair)
    _, corrupted = _observed(stream, pair.corrupted, pair)
    with evaluation_mode(model):
        effects = _patched(stream, pair, clean_outputs, first) - corrupted
    return torch.cat((effects.new_zeros(*effects.shape[:2], first), effects), dim=-1)


def attribution_patching(model: nn.Module, pair: PromptPair, *, stack: str | None = None) -> Tensor:
    """The linear approximation of `activation_patching`, all components from one backward pass.

        effect[l, s, t] = d d / d F[l, s, t] (at the corrupted run) . (F_clean[l, s, t] - F_corrupted[l, s, t])

    Nanda 2023; AtP in Kramar et al. 2024 (arXiv 2403.00745), section 2. Arguments, shape and errors are those of
    `activation_patching`.
    """
    stream, _ = stream_for(model, pair, stack), pair.first_difference()
    clean_outputs, _ = _observed(stream, pair.clean, pair)
    with evaluation_mode(model):
        return _gradient_effects(stream, pair, clean_outputs)


def stream_for(model: nn.Module, pair: PromptPair, stack: str | None = None) -> Stream:
    """The stream of a model to patch.

    Raises:
        InputError: blocks or sublayers are not found.
    """
    return find_stream(model, _arguments(model, pair.clean[None]), stack)


def _arguments(model: nn.Module, ids: Tensor) -> dict[str, Any]:
    return {"input_ids": ids.to(model_device(model)), "use_cache": False, "logits_to_keep": 1}


def _difference(output: Any, pair: PromptPair) -> Tensor:
    """d of each row, (rows,)."""
    logits = at_least_float32(output.logits[:, -1])
    return logits[:, pair.answer] - logits[:, pair.distractor]


def _observed(stream: Stream, ids: Tensor, pair: PromptPair) -> tuple[list[list[Tensor]], float]:
    """What the sublayers write for a prompt, by block, (tokens, hidden) each; and the logit difference."""
    with evaluation_mode(stream.model), torch.no_grad(), stream.recording() as record:
        found = _difference(call_model(stream.model, _arguments(stream.model, ids[None])), pair).item()
    return [[written[name][0] for name in SUBLAYERS] for written in record.written], found


@torch.no_grad()
def _patched(stream: Stream, pair: PromptPair, clean: list[list[Tensor]], first: int, tick: Tick = no_tick) -> Tensor:
    """d with one activation patched, (layers, 2, positions from `first`): every position is a row of one batch."""
    places = torch.arange(first, len(pair.corrupted))
    arguments = _arguments(stream.model, pair.corrupted.expand(len(places), -1))
    with recording(stream.stack) as record:
        call_model(stream.model, arguments)
    number = len(stream.writers)

    def patched(block: int, place: int, *, replay: bool) -> Any:
        with replaced_output(stream.writers[block][SUBLAYERS[place]], _with_rows(clean[block][place], places)):
            if not replay:
                return call_model(stream.model, arguments)
            state = run_blocks(stream.stack, record.hidden_states[block], record, range(block, number))
        return run_tail(stream.stack, state, record, arguments)

    # as in mixln.measure.proof: blocks that keep something beside their outputs cannot be replayed
    whole, again = (main_output(patched(number // 2, 0, replay=replay)) for replay in (False, True))
    replay = difference(whole, again) <= rounding(stream.stack.layers.parameters(), whole)
    effects = torch.zeros(number, len(SUBLAYERS), len(places), dtype=torch.float64)
    for block in range(number):
        for place in range(len(SUBLAYERS)):
            output = patched(block, place, replay=replay)
            effects[block, place] = precise(_difference(output, pair)).cpu()
            tick()
    return effects


def _with_rows(clean: Tensor, places: Tensor) -> Callable[[Tensor], Tensor]:
    """Row i of an output gets the clean one at position places[i]."""

    def patch(output: Tensor) -> Tensor:
        patched = output.clone()
        own = places.to(output.device)
        patched[torch.arange(len(own), device=output.device), own] = clean.to(output.device)[own]
        return patched

    return patch


def _gradient_effects(stream: Stream, pair: PromptPair, clean: list[list[Tensor]]) -> Tensor:
    """Gradient of d at the corrupted run times (clean - corrupted) outputs, (layers, 2, tokens)."""
    outputs: list[Tensor] = []
    probes: list[Tensor] = []

    def probe(output: Tensor) -> Tensor:
        # a zero that is added, so that weights without gradients do not matter
        outputs.append(output.detach())
        probes.append(torch.zeros_like(output, requires_grad=True))
        return output + probes[-1]

    with torch.enable_grad(), ExitStack() as hooks:
        for sublayers in stream.writers:
            for name in SUBLAYERS:
                hooks.enter_context(replaced_output(sublayers[name], probe))
        output = call_model(stream.model, _arguments(stream.model, pair.corrupted[None]))
        gradients = torch.autograd.grad(_difference(output, pair).sum(), probes)
    effects = [
        (precise(gradient[0]) * (precise(own) - precise(output[0]))).sum(-1).cpu()
        for gradient, own, output in zip(gradients, (one for both in clean for one in both), outputs, strict=True)
    ]
    return torch.stack(effects).unflatten(0, (-1, len(SUBLAYERS)))


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Over prompts; the deviation of one alone is nan."""
    known = torch.tensor(values, dtype=torch.float64)
    return known.mean().item(), known.std().item() if len(known) > 1 else math.nan
