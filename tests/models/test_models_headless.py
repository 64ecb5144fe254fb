from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import mixln
from mixln.placement import Placement, SublayerPlan, register_scheme
from mixln.placement.plan import BlockPlan
from mixln.placement.registry import SCHEMES


def build(embedding_std: float | None = None, placement: str = "mix(alpha=0.5)") -> mixln.MixLNLlamaForCausalLM:
    config = mixln.MixLNLlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        placement=placement,
        embedding_std=embedding_std,
    )
    model = AutoModelForCausalLM.from_config(config)
    assert isinstance(model, mixln.MixLNLlamaForCausalLM)
    return model.initialize(0)


@pytest.mark.parametrize("placement", ["mix(alpha=0.5)", "none"])
def test_the_stack_alone_opens_from_a_checkpoint_with_a_head(placement: str, tmp_path: Path) -> None:
    model = build(placement=placement).eval()
    model.save_pretrained(tmp_path)
    stack = AutoModel.from_pretrained(tmp_path)
    input_ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(stack(input_ids).last_hidden_state, model.model(input_ids).last_hidden_state)


@pytest.mark.parametrize("embedding_std", [None, 0.632])
def test_tokens_added_later_start_at_the_scale_of_the_others(embedding_std: float | None) -> None:
    torch.manual_seed(0)
    model = build(embedding_std)
    model.resize_token_embeddings(400, mean_resizing=False)
    weights = dict(model.named_parameters())
    embedding, head = weights["model.embed_tokens.weight"][100:], weights["lm_head.weight"][100:]
    assert embedding.std().item() == pytest.approx(embedding_std or 0.02, rel=0.1)
    assert head.std().item() == pytest.approx(0.02, rel=0.1)


def test_an_option_without_default_must_be_given() -> None:
    try:

        @register_scheme("needs_option")
        def needs_option(depth: int, num_layers: int, *, every: int) -> BlockPlan:
            assert 1 <= depth <= num_layers
            assert every
            return BlockPlan(SublayerPlan(), SublayerPlan())

        with pytest.raises(mixln.PlacementError, match="needs_option: option every must be given"):
            Placement.parse("needs_option")
        assert str(Placement.parse("needs_option(every=2)")) == "needs_option(every=2)"
    finally:
        SCHEMES.pop("needs_option", None)
