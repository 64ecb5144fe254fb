"""Tiny models under every registered placement."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

import mixln
from mixln import MixLNLlamaConfig, MixLNLlamaForCausalLM

VOCABULARY = 97

SCHEMES = mixln.schemes()
PLACEMENTS = [*SCHEMES, "mix(alpha=0.5)", "mix(post_layers=3)", "deepnorm(residual_scale=1.5)"]
MODIFIED = [f"{scheme}+{modifier}" for scheme in SCHEMES for modifier in mixln.modifiers()]
ALL = [*PLACEMENTS, *MODIFIED]
STOCK = ["pre", "mix(alpha=0)", "mix(post_layers=0)", "pre+scaled_init"]
"""Placements of which stock Llama computes the very function."""


TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": None,
}


def tiny_config(placement: str = "pre", **changes: Any) -> MixLNLlamaConfig:
    fields = {**TINY, "attn_implementation": "sdpa"}
    return MixLNLlamaConfig(**(fields | changes), placement=placement)


def tiny_model(placement: str = "pre", *, seed: int = 0, **changes: Any) -> MixLNLlamaForCausalLM:
    """A model with matrices large enough that every layer does something, and a random gain in every norm."""
    model = MixLNLlamaForCausalLM(tiny_config(placement, **changes)).initialize(seed)
    randomise_gains(model, seed)
    return model.eval()


def randomise_gains(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                value = torch.rand(parameter.shape, generator=generator) + 0.5
                # the slope of a pointwise norm: where it saturates, nothing below it has a gradient
                parameter.copy_(value / 4 if name.endswith("alpha") else value)


def token_ids(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def generate(model: nn.Module, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Greedy continuation."""
    output = cast(Any, model).generate(input_ids=ids, do_sample=False, pad_token_id=0, **kwargs)
    assert isinstance(output, torch.Tensor)
    return output


def pixels(rows: int = 2, size: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))


def as_given(inputs: torch.Tensor) -> dict[str, Any]:
    """Tokens or pixels by the name that a model takes them under, and without a cache."""
    return {"pixel_values": inputs} if inputs.is_floating_point() else {"input_ids": inputs, "use_cache": False}


def logits_of(model: nn.Module, inputs: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return cast(torch.Tensor, model(**as_given(inputs), **kwargs).logits)


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, persistent or not."""
    return {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def assert_same_tensors(one: nn.Module, other: nn.Module) -> None:
    left, right = tensors_of(one), tensors_of(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def labels_of(inputs: torch.Tensor) -> torch.Tensor:
    """The tokens themselves, or a class for each image."""
    return torch.arange(len(inputs)) if inputs.is_floating_point() else inputs


def gradients_of(model: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of the model's own loss."""
    model.zero_grad()
    model(**as_given(inputs), labels=labels_of(inputs)).loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def assert_close_by_tensor(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Every tensor within `tolerance` of the largest entry of the expected one; of 1000 times that for a lone number.

    The gradient of a scalar is a sum over all tokens and channels, most of which cancel. That of a key's bias is zero
    (softmax does not see it): what is left is rounding, so a millionth of the largest entry of all is allowed too.
    """
    assert found.keys() == expected.keys()
    rounding = 1e-6 * max(tensor.abs().max().item() for tensor in expected.values())
    for name, tensor in expected.items():
        difference = (found[name] - tensor).abs().max().item()
        allowed = tolerance if tensor.numel() > 1 else 1000 * tolerance
        assert difference <= allowed * tensor.abs().max().item() + rounding, f"{name}: {difference}"
