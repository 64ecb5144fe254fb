"""Direct logit attribution against sums and removals written out, in models with and without norms."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architecture_tools import tiny_architecture
from models_tools import VOCABULARY, token_ids
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    NemotronConfig,
    Olmo2Config,
)

from mixln.errors import InputError
from mixln.interpret import LogitAttribution, direct_logit_attribution
from mixln.interpret.readout import fit_norm
from mixln.interpret.stream import rounding
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
    [
        LlamaConfig(**SHAPE),
        Olmo2Config(**SHAPE),
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4),
        # their norms multiply with 1 + weight
        GemmaConfig(**SHAPE),
        Gemma2Config(**SHAPE, final_logit_softcapping=None),
        Gemma3TextConfig(**SHAPE),
        NemotronConfig(**SHAPE),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("trained", [False, True])
def test_stock_models(config: Any, *, trained: bool) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    if trained:
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                nn.init.normal_(parameter, std=0.5)
    found = attributed(model)
    assert len(found.components) == 7
    assert found.sum_error.max() < 1e-4


@pytest.mark.slow
def test_every_norm_of_transformers_is_taken_apart_or_refused() -> None:
    """Told by what each does to a vector: most are weight * x / scale, some (1 + weight) * x / scale."""
    generator, plus_one, refused = torch.Generator().manual_seed(0), [], []
    state = 3 * torch.randn(2, 5, 32, generator=generator)
    for name, norm in norms_of_transformers(32):
        for parameter in norm.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        output = norm(state)
        gain, offset, centered, inverse_scale, off = fit_norm(norm, state.double(), output.double())
        if not off <= rounding(torch.float32):
            refused.append(name)
            continue
        projected = state - state.mean(-1, keepdim=True) if centered else state
        torch.testing.assert_close((gain * projected * inverse_scale + offset).float(), output, atol=1e-4, rtol=1e-4)
        weight = getattr(norm, "weight", None)
        if weight is not None and not torch.equal(gain, weight.double()):
            torch.testing.assert_close(gain, 1 + weight.double())
            plus_one.append(name)
    assert {"GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm", "Qwen3NextRMSNorm", "NemotronLayerNorm1P"} <= {*plus_one}
    assert {*refused} <= NOT_A_SCALE, refused


NOT_A_SCALE = {"MoonshineStreamingLayerNorm"}
"""Norms of transformers that keep their weight under another name."""


def norms_of_transformers(width: int) -> Iterator[tuple[str, nn.Module]]:
    """The norms of its models that are made of a width alone, and take a vector for each token."""
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        if not (names := re.findall(r"^class (\w*Norm\w*)\(", path.read_text(), re.MULTILINE)):
            continue
        module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        for name in names:
            try:
                norm = getattr(module, name)(width)
                is_norm = isinstance(norm, nn.Module) and norm(torch.ones(2, 5, width)).shape == (2, 5, width)
            except Exception:  # of a config, of two inputs, of images
                continue
            if is_norm:
                yield name, norm


@pytest.mark.parametrize("placement", ["post", "deepnorm", "mix(alpha=0.25)", "hybrid", "b2t"])
def test_norms_on_the_stream_are_refused_with_the_reason(placement: str) -> None:
    with pytest.raises(InputError, match=r"placement .* is not a plain sum.* block 1 .*Post-LN") as refused:
        attributed(tiny_architecture("llama", placement))
    assert placement.split("(")[0] in str(refused.value)


def test_other_models_that_are_not_linear_behind_the_last_block_are_refused() -> None:
    with pytest.raises(InputError, match="not weight \\* x / scale"):
        attributed(tiny_architecture("llama", "pre+dyt"))
    torch.manual_seed(0)
    capped = AutoModelForCausalLM.from_config(Gemma2Config(**SHAPE, final_logit_softcapping=1.0))
    with pytest.raises(InputError, match="a cap or a scale follows the head"):
        attributed(capped)
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
