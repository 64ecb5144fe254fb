"""Direct logit attribution against sums and removals written out, in models with and without norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architecture_tools import tiny_architecture
from models_tools import VOCABULARY, token_ids
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Olmo2Config

from mixln.errors import InputError
from mixln.interpret import LogitAttribution, direct_logit_attribution
from mixln.tasks.norm_removal import install_frozen_norms

ANSWERS, DISTRACTORS = torch.tensor([5, 9]), torch.tensor([7, 3])
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.15,
    "pad_token_id": None,
}


def attributed(model: nn.Module, **options: Any) -> LogitAttribution:
    return direct_logit_attribution(model, token_ids(), ANSWERS, DISTRACTORS, **options)


def model_difference(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits = model(input_ids=token_ids()).logits[:, -1]
    return logits.gather(-1, ANSWERS[:, None]) - logits.gather(-1, DISTRACTORS[:, None])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "olmo2"])
@pytest.mark.parametrize("placement", ["none", "pre", "lns", "sandwich", "peri", "reordered", "pre+scaled_embed"])
def test_contributions_and_biases_sum_to_the_logit_difference(architecture: str, placement: str) -> None:
    model = tiny_architecture(architecture, placement)
    found = attributed(model)
    assert len(found.components) == found.contribution.shape[-1] == 2 * 4 + 1
    torch.testing.assert_close(found.logit_difference.float(), model_difference(model), atol=1e-5, rtol=1e-5)
    assert found.sum_error.max() < 1e-4
    if placement == "none":
        assert found.gap < 1e-4
        torch.testing.assert_close(found.contribution, found.direct_effect, atol=1e-4, rtol=0)
    else:
        assert found.gap > 0.01


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("placement", ["none", "pre"])
def test_a_direct_effect_is_what_the_model_itself_says_without_the_component(architecture: str, placement: str) -> None:
    """Taken out of the input of the model's own final norm, as a hook would."""
    model = tiny_architecture(architecture, placement)
    found, whole = attributed(model), model_difference(model)
    base: Any = model.base_model
    block = list(base.h if architecture == "gpt2" else base.layers)[1]
    written: list[Tensor] = []
    block.mlp.register_forward_hook(lambda _module, _args, output: written.append(output))
    final_norm = base.get_submodule(base.final_norm_name)
    final_norm.register_forward_pre_hook(lambda _norm, args: (args[0] - written[-1],))
    effect = whole - model_difference(model)
    index = [str(component) for component in found.components].index("feed_forward 2")
    torch.testing.assert_close(found.direct_effect[..., index].float(), effect, atol=1e-5, rtol=1e-4)


def test_biases_of_the_norm_and_of_the_head_are_counted() -> None:
    model = tiny_architecture("gpt2", "pre")
    without = attributed(model)
    head: Any = model.get_output_embeddings()
    head.bias = nn.Parameter(torch.linspace(-1, 1, VOCABULARY))
    found = attributed(model)
    difference = (head.bias[ANSWERS] - head.bias[DISTRACTORS]).detach().double()[:, None]
    torch.testing.assert_close(found.bias, without.bias + difference)
    assert without.bias.abs().min() > 0
    assert found.sum_error.max() < 1e-4


def test_several_positions_of_a_row_and_padding() -> None:
    model, ids = tiny_architecture("llama", "pre"), token_ids()
    answers, distractors = token_ids(seed=3)[:, :4], token_ids(seed=4)[:, :4]
    positions = torch.tensor([[1, 3, 5, 7], [2, 4, 6, 8]])
    found = direct_logit_attribution(model, ids, answers, distractors, positions)
    one = direct_logit_attribution(model, ids[1:, :7], answers[1:, 2], distractors[1:, 2], positions[1:, 2])
    torch.testing.assert_close(found.contribution[1, 2], one.contribution[0, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.direct_effect[1, 2], one.direct_effect[0, 0], atol=1e-5, rtol=1e-4)
    mask = torch.ones_like(ids).index_fill_(1, torch.tensor([10, 11]), 0)
    padded = direct_logit_attribution(model, ids, answers, distractors, positions, arguments={"attention_mask": mask})
    torch.testing.assert_close(padded.contribution, found.contribution, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_norms_with_frozen_scales_have_no_gap(architecture: str) -> None:
    model = tiny_architecture(architecture, "lns")
    norms = install_frozen_norms(model, end_of_text=None)
    model.train()
    model(input_ids=token_ids())
    norms.finish_step(torch.tensor(True), lambda totals: totals)
    model.eval()
    assert attributed(model).gap > 0.01
    norms.freeze("final", None)
    found = attributed(model)
    assert found.gap < 1e-4
    assert found.sum_error.max() < 1e-4


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**SHAPE), Olmo2Config(**SHAPE), GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4)],
    ids=lambda config: config.model_type,
)
def test_stock_models(config: Any) -> None:
    torch.manual_seed(0)
    found = attributed(AutoModelForCausalLM.from_config(config))
    assert len(found.components) == 7
    assert found.sum_error.max() < 1e-4


@pytest.mark.parametrize("placement", ["post", "deepnorm", "mix(alpha=0.25)", "hybrid", "b2t"])
def test_norms_on_the_stream_are_refused_with_the_reason(placement: str) -> None:
    with pytest.raises(InputError, match=r"placement .* is no plain sum.* block 1 .*Post-LN") as refused:
        attributed(tiny_architecture("llama", placement))
    assert placement.split("(")[0] in str(refused.value)


def test_other_models_that_are_not_linear_behind_the_last_block_are_refused() -> None:
    with pytest.raises(InputError, match="not weight \\* x / scale"):
        attributed(tiny_architecture("llama", "pre+dyt"))
    torch.manual_seed(0)
    capped = AutoModelForCausalLM.from_config(Gemma2Config(**SHAPE, final_logit_softcapping=1.0))
    with pytest.raises(InputError, match=r"weight \* x / scale"):
        attributed(capped)  # the norm comes before the cap
    scaled: Any = tiny_architecture("llama", "pre")
    scaled.lm_head.register_forward_hook(lambda _head, _given, logits: logits.tanh())
    with pytest.raises(InputError, match="a cap or a scale follows the head"):
        attributed(scaled)
    headless: Any = tiny_architecture("llama", "pre").base_model
    with pytest.raises(InputError, match="no language-model head"):
        attributed(headless)
    with pytest.raises(InputError, match="answers, distractors and positions must all be"):
        attributed(tiny_architecture("llama", "pre"), positions=torch.zeros(2, 3, dtype=torch.long))


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_architecture("llama", "pre").train()
    attributed(model)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
