"""Running a model on a little input of its kind, to compare it with another that should compute the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mixln.errors import InputError
from mixln.measure.calls import watched
from mixln.measure.comparison import floats_in
from mixln.measure.forward import model_device, on_device
from mixln.models.anatomy import BlockStack
from mixln.models.foreign import ModelCallError, naming_failures
from mixln.modes import evaluation_mode

_TOKENS = 9
_NEW_TOKENS = 4
_ROUNDING = 64
"""Of the dtype's own, relative to the largest output: another place in memory can change the order of a sum."""
_LOW_ROUNDING = 0.25
"""The same of 16 bits, and of the typical output: rounded so coarsely, sums in another order mostly are the same."""
_CACHED = 2e-2
"""The same of logits made with a cache, where sums are of other lengths; what is wrong differs by far more."""


def find_inputs(stack: BlockStack) -> tuple[str, dict[str, Any]]:
    """Find a part of a model, and arguments (random tokens, an image, a sound) with which all of its blocks run.

    Returns:
        The part's name (""; the whole model), which is as large as can be, and its arguments.

    Raises:
        InputError: no arguments that are tried do, with the reason of the first.
    """
    reasons: list[str] = []
    names = [""] + [stack.name[: match.start()] for match in re.finditer(r"\.", stack.name)]
    for name in names:
        part = stack.model.get_submodule(name)
        if not isinstance(part, PreTrainedModel):
            continue
        for inputs in _candidates(part):
            ran: list[int] = []
            try:
                with (
                    watched(enumerate(stack.layers), lambda index, _args, _output, ran=ran: ran.append(index)),
                    naming_failures("these are not its arguments"),
                ):
                    outputs_of(part, inputs)
            except ModelCallError as error:
                reasons.append(error.reason)
                continue
            if {*ran} == {*range(len(stack.layers))}:
                return name, inputs
            reasons.append(f"{', '.join(inputs)} do not reach the blocks {stack.name}")
    raise InputError(
        f"no input was found with which a {type(stack.model).__name__} runs, so the pruned model could not be "
        f"checked ({reasons[0] if reasons else 'it is no model of transformers'})"
    )


def outputs_of(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return all floating-point outputs of a model, by their names, dropout off and without a cache."""
    arguments = on_device(inputs, model_device(model))
    with evaluation_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of models that draw something when they are used
        return {name: value.cpu() for name, value in floats_in(model(**arguments))}


def same_outputs(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> str | None:
    """Return what differs between the outputs of two models, in words; None: nothing but the last bits."""
    one, other = _of_the_whole(one), _of_the_whole(other)
    if one.keys() != other.keys():
        return f"its outputs are {', '.join(other)}, not {', '.join(one)}"
    for name, value in one.items():
        if (difference := _difference(value, other[name])) is not None:
            return f"{name} {difference}"
    return None


def _of_the_whole(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs but those that come in lists (for each layer), unless there are no others."""
    return {name: value for name, value in outputs.items() if "[" not in name} or dict(outputs)


def _difference(one: torch.Tensor, other: torch.Tensor) -> str | None:
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"is {tuple(other.shape)} in {other.dtype}, not {tuple(one.shape)} in {one.dtype}"
    if torch.equal(one, other):
        return None
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return "is not finite in other places"
    if not finite.any():
        return "has no finite value, so it could not be compared: load the model in float32 or bfloat16"
    one, other, eps = one[finite], other[finite], torch.finfo(one.dtype).eps
    is_low = eps > 1e-4
    size, far = (
        (values.float().square().mean().sqrt() if is_low else values.abs().max()).item()
        for values in (one, one - other)
    )
    far /= max(size, torch.finfo(one.dtype).tiny)
    return f"differs by {far:.1e} of its size" if far > (_LOW_ROUNDING if is_low else _ROUNDING) * eps else None


def generation_fault(model: PreTrainedModel) -> str | None:
    """Return how greedy generation with its cache differs from that without, in words; None: it does not."""
    generator: Any = model
    inputs = {name: value for name, value in next(_candidates(model)).items() if isinstance(value, torch.Tensor)}
    found: list[list[torch.Tensor]] = []
    try:
        for use_cache in (True, False):
            with naming_failures("generation fails"), evaluation_mode(model), torch.no_grad():
                output = generator.generate(
                    **on_device(inputs, model_device(model)),
                    max_new_tokens=_NEW_TOKENS,
                    do_sample=False,
                    num_beams=1,
                    use_cache=use_cache,
                    output_logits=True,
                    return_dict_in_generate=True,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            found.append([logits.float().cpu() for logits in output.logits])
    except ModelCallError as error:
        return f"generation fails ({error.reason})"
    for step, (cached, uncached) in enumerate(zip(*found, strict=True), start=1):
        far = (cached - uncached).abs().max().item() / max(uncached.abs().max().item(), 1e-6)
        if not far <= _CACHED:
            return f"generation with its cache differs from that without at token {step}, by {far:.1e} of the logits"
        if not torch.equal(cached.argmax(-1), uncached.argmax(-1)):
            return None  # a tie, broken in two ways: what follows is of other tokens
    return None


def _candidates(model: Any) -> Iterator[dict[str, Any]]:
    """Arguments for models of each kind, the likeliest first."""
    generator = torch.Generator().manual_seed(0)
    text = model.config.get_text_config()
    vocabulary = getattr(text, "vocab_size", None) or getattr(model.config, "vocab_size", None) or 100
    positions = getattr(text, "max_position_embeddings", None)
    length = min(_TOKENS, positions) if isinstance(positions, int) and positions > 2 else _TOKENS
    # not the first and the last ids: they mean something
    ids = torch.randint(min(5, vocabulary - 1), max(vocabulary // 2, 6), (2, length), generator=generator)
    ids = ids.clamp_max(vocabulary - 1)
    uncached = {"use_cache": False} if hasattr(text, "use_cache") else {}
    decoder = {"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {}
    dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
    pixels = _pixels(model.config, dtype, generator)
    sound = torch.randn(2, 8000, generator=generator).to(dtype)
    bands = getattr(text, "num_mel_bins", None) or getattr(model.config, "num_mel_bins", None) or 80
    frames = 2 * (getattr(text, "max_source_positions", None) or 50)
    spectrum = torch.randn(2, bands, frames, generator=generator).to(dtype)
    words = {"input_ids": ids, **decoder, **uncached}
    end = getattr(text, "eos_token_id", None)
    # Bart's and T5's classifiers look for the end, and make the decoder's input of the text themselves
    ended = torch.cat((ids[:, :-1], torch.full_like(ids[:, -1:], end if isinstance(end, int) else 0)), 1)
    others = [
        {"input_ids": ended, **uncached},
        {"pixel_values": pixels},
        {"pixel_values": pixels, **decoder, **uncached},
        {"input_ids": ids, "pixel_values": pixels},
        {"pixel_values": pixels[:, None].expand(-1, 2, -1, -1, -1)},
        {"input_values": sound},
        {"input_values": spectrum.transpose(1, 2)},
        {"input_features": spectrum, **decoder, **uncached},
        {"input_features": spectrum.transpose(1, 2), **decoder, **uncached},
        _patches(model.config, dtype, generator),
    ]
    is_of_text = model.main_input_name == "input_ids"
    likely = [words] if is_of_text else [*(inputs for inputs in others if model.main_input_name in inputs), words]
    yield from likely
    yield from (inputs for inputs in others if not any(inputs is seen for seen in likely))


def _patches(config: Any, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """An image of 4 x 8 patches, as models for images of any size take them."""
    side, frames, channels = (
        getattr(config, name, None) or default
        for name, default in (("patch_size", 14), ("temporal_patch_size", 2), ("in_channels", 3))
    )
    numbers = channels * frames * side * side if isinstance(side, int) else channels * frames
    patches = torch.randn(32, numbers, generator=generator).to(dtype)
    return {"hidden_states": patches, "grid_thw": torch.tensor([[1, 4, 8]])}


def _pixels(config: Any, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    vision = getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config
    size = getattr(vision, "image_size", None) or getattr(config, "image_size", None) or 32
    height, width = (size, size) if isinstance(size, int) else (tuple(size)[-2:] if len(size) > 1 else (size[0],) * 2)
    channels = getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3
    return torch.randn(2, channels, height, width, generator=generator).to(dtype)
