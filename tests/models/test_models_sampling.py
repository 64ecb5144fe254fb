"""Completions in batches, and the divergence between the model that wrote them and another one."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_llama
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import mixln
from mixln.data import PreparedData
from mixln.models.sampling import Sampling, complete, divergences, end_tokens, generation_settings

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]


@pytest.fixture(scope="module")
def llama(data: PreparedData) -> LlamaForCausalLM:
    return tiny_llama(data.tokenizer, 2)


def greedy_by_hand(model: Any, prompt: list[int], count: int, end: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        if ids[-1] == end:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("placement", [None, "pre", "mix(alpha=0.5)", "lns", "none"])
def test_greedy_completions_are_those_of_each_prompt_alone(placement: str | None, data: PreparedData) -> None:
    """In one batch, padded and with a cache, for every placement and a stock model."""
    if placement is None:
        model: Any = tiny_llama(data.tokenizer, 2)
    else:
        config = mixln.MixLNLlamaConfig(
            vocab_size=len(data.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, placement=placement, initializer_range=0.2,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config).eval()
    end: Any = data.tokenizer.eos_token_id
    found = complete(model, data.tokenizer, PROMPTS, Sampling(8, greedy=True, batch_size=4))
    expected = [greedy_by_hand(model, prompt, 8, end) for prompt in PROMPTS]
    assert [[one.ids for one in several] for several in found] == [[ids] for ids in expected]
    assert [several[0].ended for several in found] == [ids[-1] == end for ids in expected]
    texts = [data.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert [several[0].text for several in found] == texts


def test_samples_are_a_function_of_the_seed_and_leave_the_random_state_alone(
    llama: LlamaForCausalLM, data: PreparedData
) -> None:
    how = Sampling(6, samples=3, batch_size=5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = complete(llama, data.tokenizer, PROMPTS, how)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert complete(llama, data.tokenizer, PROMPTS, how) == one
    assert complete(llama, data.tokenizer, PROMPTS, replace(how, seed=1)) != one
    assert [len(several) for several in one] == [3] * 4
    assert len({tuple(sample.ids) for sample in one[0]}) > 1


def test_a_folder_s_own_generation_settings_are_not_used(llama: LlamaForCausalLM, data: PreparedData) -> None:
    settings = llama.generation_config
    assert settings is not None
    how = Sampling(12, samples=8)
    expected = complete(llama, data.tokenizer, PROMPTS, how)
    settings.top_k, settings.repetition_penalty, settings.no_repeat_ngram_size = 1, 5.0, 1
    try:
        assert complete(llama, data.tokenizer, PROMPTS, how) == expected
    finally:
        settings.top_k, settings.repetition_penalty, settings.no_repeat_ngram_size = None, None, None
    assert llama.generation_config is settings


def test_the_end_tokens_are_special_ones(llama: LlamaForCausalLM, data: PreparedData) -> None:
    """Llama's config ends texts by token 2 unless told otherwise, which is a letter of this tokenizer."""
    settings: Any = llama.generation_config
    own = data.tokenizer.eos_token_id
    assert settings.eos_token_id == 2
    assert end_tokens(llama, data.tokenizer) == [own]
    assert generation_settings(llama, data.tokenizer, Sampling(1)).eos_token_id == [own]
    tokenizer = copy.deepcopy(data.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})  # pyright: ignore[reportArgumentType]
    settings.eos_token_id = [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    try:
        assert end_tokens(llama, tokenizer) == [own, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    finally:
        settings.eos_token_id = 2


def test_the_divergence_is_the_sum_over_places_and_tokens(data: PreparedData, llama: LlamaForCausalLM) -> None:
    other = tiny_llama(data.tokenizer, 2, initializer_range=0.05)
    completions = [[20, 21], [22], [23, 24, 25], [26]]
    found = divergences(llama, other, PROMPTS, completions, temperature=0.7, batch_size=3)
    for value, prompt, completion in zip(found, PROMPTS, completions, strict=True):
        ids = torch.tensor([[*prompt, *completion]])
        with torch.no_grad():
            own, theirs = (model(input_ids=ids).logits[0].double() / 0.7 for model in (llama, other))
        expected = 0.0
        for place in range(len(prompt) - 1, ids.shape[1] - 1):
            p, q = own[place].softmax(-1).tolist(), theirs[place].softmax(-1).tolist()
            expected += sum(one * math.log(one / two) for one, two in zip(p, q, strict=True))
        assert value == pytest.approx(expected, rel=1e-4)
        assert value > 0


def test_the_divergence_of_a_model_from_itself_is_zero(llama: LlamaForCausalLM, data: PreparedData) -> None:
    again = tiny_llama(data.tokenizer, 2)
    assert divergences(llama, again, PROMPTS, [[20, 21], [22], [23], [24]]) == [0.0] * 4


@pytest.mark.slow
def test_its_mean_over_samples_is_that_of_the_log_ratio_with_less_spread(
    data: PreparedData, llama: LlamaForCausalLM
) -> None:
    """Both estimate the divergence of the distributions over completions."""
    other = tiny_llama(data.tokenizer, 2, initializer_range=0.17)
    written = complete(llama, data.tokenizer, [[5, 6]], Sampling(4, samples=1500, batch_size=500))[0]
    exact = torch.tensor(divergences(llama, other, [[5, 6]] * 1500, [one.ids for one in written], batch_size=500))
    ratios: list[float] = []
    for one in written:
        ids = torch.tensor([[5, 6, *one.ids]])
        with torch.no_grad():
            p, q = (model(input_ids=ids).logits[0, 1:-1].log_softmax(-1) for model in (llama, other))
        chosen = torch.tensor(one.ids).unsqueeze(1)
        ratios.append((p.gather(1, chosen) - q.gather(1, chosen)).sum().item())
    ratio = torch.tensor(ratios)
    error = (ratio.std() ** 2 / 1500 + exact.std() ** 2 / 1500).sqrt().item()
    assert abs(ratio.mean() - exact.mean()).item() < 4 * error
    assert exact.std() < 0.7 * ratio.std()


def test_progress_counts_completions(llama: LlamaForCausalLM, data: PreparedData) -> None:
    seen: list[tuple[int, int]] = []
    how = Sampling(2, samples=2, batch_size=3)
    complete(llama, data.tokenizer, PROMPTS, how, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 8), (6, 8), (8, 8)]
