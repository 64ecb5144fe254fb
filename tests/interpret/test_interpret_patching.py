"""Patching against patching by hand, on a linear model, and on one whose induction head is planted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architecture_tools import tiny_architecture
from models_tools import VOCABULARY
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mixln.data import train_tokenizer
from mixln.errors import InputError
from mixln.interpret import (
    PromptPair,
    activation_patching,
    attribution_patching,
    indirect_object_prompts,
    induction_prompts,
    patching_agreement,
)

PAIR = induction_prompts(range(1, VOCABULARY), 1, segment=6)[0]
SUBLAYERS = {"llama": ("self_attn", "mlp"), "gpt2": ("attn", "mlp")}


def difference(model: nn.Module, ids: Tensor, pair: PromptPair) -> float:
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0, -1]
    return (logits[pair.answer] - logits[pair.distractor]).item()


def layer_modules(model: Any, architecture: str, layer: int) -> list[nn.Module]:
    block = (model.base_model.h if architecture == "gpt2" else model.base_model.layers)[layer]
    return [getattr(block, name) for name in SUBLAYERS[architecture]]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("placement", ["none", "pre", "lns", "post"])
def test_activation_patching_is_what_a_hook_by_hand_gives(architecture: str, placement: str) -> None:
    model = tiny_architecture(architecture, placement)
    found = activation_patching(model, PAIR)
    assert found.shape == (4, 2, len(PAIR.clean))
    first = PAIR.first_difference()
    assert not found[..., :first].any()
    for layer, sublayer, position in ((0, 1, first), (2, 0, len(PAIR.clean) - 1), (3, 1, first + 1)):
        module = layer_modules(model, architecture, layer)[sublayer]
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _args: Any, output: Any, kept: list[Tensor] = kept) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)

        handle = module.register_forward_hook(keep)
        difference(model, PAIR.clean, PAIR)
        handle.remove()

        def patch(_m: nn.Module, _a: Any, output: Any, clean: Tensor = kept[0], position: int = position) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[0, position] = clean[0, position]
            return (states, *output[1:]) if isinstance(output, tuple) else states

        handle = module.register_forward_hook(patch)
        patched = difference(model, PAIR.corrupted, PAIR)
        handle.remove()
        expected = patched - difference(model, PAIR.corrupted, PAIR)
        assert found[layer, sublayer, position].item() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("placement", ["none", "pre", "lns"])
def test_attribution_patching_is_the_slope_at_the_corrupted_run(architecture: str, placement: str) -> None:
    """Against a finite difference: a small step from the corrupted to the clean activation."""
    model = tiny_architecture(architecture, placement).double()
    found = attribution_patching(model, PAIR)
    layer, sublayer, position, step = 1, 1, PAIR.first_difference(), 1e-2
    module = layer_modules(model, architecture, layer)[sublayer]
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda *called: outputs.append(called[-1]))
    difference(model, PAIR.clean, PAIR)
    difference(model, PAIR.corrupted, PAIR)
    handle.remove()

    def moved(step: float) -> float:
        def move(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[0, position] += step * (outputs[0][0, position] - outputs[1][0, position])
            return changed

        handle = module.register_forward_hook(move)
        found = difference(model, PAIR.corrupted, PAIR)
        handle.remove()
        return found

    slope = (moved(step) - moved(-step)) / (2 * step)
    # Llama's norms compute in float32
    assert found[layer, sublayer, position].item() == pytest.approx(slope, rel=1e-2, abs=1e-4)


def linear_model() -> nn.Module:
    """GPT-2 without norms, with a linear feed-forward and attention that looks at all tokens alike."""
    model: Any = tiny_architecture("gpt2", "none", activation_function="linear")
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :64] = 0.0
            block.attn.c_attn.bias[:64] = 0.0
    return model.double()


def test_in_a_linear_model_both_are_one() -> None:
    pairs = induction_prompts(range(1, VOCABULARY), 2, segment=6, seed=1)
    found = patching_agreement(linear_model(), pairs)
    for one in found.prompts:
        torch.testing.assert_close(one.attribution, one.activation, atol=1e-9, rtol=1e-6)
        assert one.correlation == pytest.approx(1.0, abs=1e-6)
        assert one.slope == pytest.approx(1.0)
        assert one.error < 1e-6
    assert found.correlation == pytest.approx((1.0, 0.0), abs=1e-6)


def planted_induction() -> nn.Module:
    """Two GPT-2 layers without norms: the first attention copies the previous token, the second looks for its mark.

    A stream of 4 V channels: token, position, token before (written by layer 1), guess (written by layer 2).
    """
    size = 16
    model: Any = tiny_architecture(
        "gpt2",
        "none",
        vocab_size=size,
        hidden_size=4 * size,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=size,
    )
    token, place, before, guess = (slice(size * number, size * (number + 1)) for number in range(4))
    one, next_one = torch.eye(size), torch.diag(torch.ones(size - 1), 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.wte.weight[:, token] = one
        model.transformer.wpe.weight[:, place] = one
        width = 4 * size

        def plant(layer: int, query: Tensor, read: slice, key: slice, write: slice, sharpness: float) -> None:
            attention = model.transformer.h[layer].attn
            attention.c_attn.weight[read, :size] = query * sharpness
            attention.c_attn.weight[key, width : width + size] = one
            attention.c_attn.weight[token, 2 * width : 2 * width + size] = one
            attention.c_proj.weight[:size, write] = one

        # position t asks for position t - 1; then a token asks for the place that stands behind the same token
        plant(0, next_one.T, place, place, before, 400.0)
        plant(1, one, token, before, guess, 200.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, guess] = one * 3.0
    return model


def test_a_planted_induction_head_is_found_where_it_was_put() -> None:
    model = planted_induction()
    for pair in induction_prompts(range(1, 16), 3, segment=7, seed=2):
        assert difference(model, pair.clean, pair) == pytest.approx(3.0, abs=1e-3)
        assert difference(model, pair.corrupted, pair) < 1.0
        effects = activation_patching(model, pair)
        # layer 1's attention, where it marks B with A; layer 2's, at the last token; nothing else
        marked, last = pair.first_difference() + 1, len(pair.clean) - 1
        whole = difference(model, pair.clean, pair) - difference(model, pair.corrupted, pair)
        assert effects[0, 0, marked].item() == pytest.approx(whole, abs=1e-3)
        assert effects[1, 0, last].item() == pytest.approx(whole, abs=1e-3)
        effects[0, 0, marked] = effects[1, 0, last] = 0.0
        assert effects.abs().max() < 1e-3


def test_induction_prompts_have_their_cue_and_are_drawn_by_seed() -> None:
    pairs, again = (induction_prompts(range(5, 90), 6, segment=8, seed=4) for _ in range(2))
    for pair, same in zip(pairs, again, strict=True):
        assert torch.equal(pair.clean, same.clean)
        assert (pair.answer, pair.distractor) == (same.answer, same.distractor)
        clean, cue = pair.clean.tolist(), pair.first_difference()
        assert clean[-1] == clean[cue]
        assert clean[cue + 1] == pair.answer
        assert pair.distractor in set(clean) - {pair.answer, clean[cue]}
        assert (pair.clean != pair.corrupted).sum() == 1
        assert clean[cue] not in pair.corrupted[:-1].tolist()
    assert not torch.equal(pairs[0].clean, induction_prompts(range(5, 90), 1, segment=8, seed=5)[0].clean)


def named_tokenizer(names: str) -> PreTrainedTokenizerFast:
    texts = [
        f"When {name} and others went to the store, {name} gave a drink to {name}. " * 30 for name in names.split()
    ]
    return train_tokenizer(texts, 420)


def test_indirect_object_prompts_have_names_of_one_token() -> None:
    tokenizer = named_tokenizer("Mary John Tom")
    pairs = indirect_object_prompts(tokenizer, 6, seed=1)
    for pair in pairs:
        answer, giver = (str(tokenizer.decode([token])).strip() for token in (pair.answer, pair.distractor))
        assert {answer, giver} < {"Mary", "John", "Tom"}
        clean, corrupted = (tokenizer.decode(ids) for ids in (pair.clean, pair.corrupted))
        assert (clean.count(answer), clean.count(giver)) == (1, 2)
        assert (corrupted.count(answer), corrupted.count(giver)) == (2, 1)
    assert len({tuple(pair.clean.tolist()) for pair in pairs}) > 1
    with pytest.raises(InputError, match="no two of the names"):
        indirect_object_prompts(named_tokenizer("zebra"), 1)


def test_what_cannot_be_patched_is_refused() -> None:
    model = tiny_architecture("llama", "none")
    with pytest.raises(InputError, match="at least one pair"):
        patching_agreement(model, [])
    ids = torch.arange(1, 6)
    with pytest.raises(InputError, match="one length"):
        activation_patching(model, PromptPair(ids, ids[:-1], 1, 2))
    with pytest.raises(InputError, match="are the same"):
        attribution_patching(model, PromptPair(ids, ids, 1, 2))
    with pytest.raises(InputError, match="6 distinct tokens"):
        induction_prompts(range(6), 1, segment=8)
    with pytest.raises(InputError, match="count must be at least 1"):
        induction_prompts(range(60), 0)
