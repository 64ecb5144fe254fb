"""Where the parts of a model are, compared with the order in which its modules run, of every class of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.sweep.building import NotBuiltError, build, example
from tests.sweep.catalogue import catalogue, entry_of
from torch import nn
from transformers import PreTrainedModel

from mixln.errors import InputError
from mixln.models import ARCHITECTURES
from mixln.models.anatomy import BlockStack, Part, block_anatomy, find_anatomy
from mixln.models.causal import without_heads

SAMPLE = {
    "LlamaForCausalLM": "model.norm",
    "GPT2LMHeadModel": "transformer.ln_f",
    "OPTForCausalLM": "model.decoder.final_layer_norm",  # registered before the blocks
    "BartForCausalLM": None,  # with a norm on its embedding that is registered behind the blocks
    "Lfm2ForCausalLM": "model.embedding_norm",  # named as if it were one on the embedding
    "FalconForCausalLM": "transformer.ln_f",
    "BloomForCausalLM": "transformer.ln_f",
    "MambaForCausalLM": "backbone.norm_f",
    "RwkvForCausalLM": "rwkv.ln_out",  # whose forward reads its blocks first
    "OlmoForCausalLM": "model.norm",  # without parameters
    "BertForMaskedLM": None,
    "DistilBertForMaskedLM": None,  # with a norm in its head
    "MegatronBertForCausalLM": "bert.encoder.ln",
    "ViTModel": "layernorm",
    "LlavaForConditionalGeneration": "model.language_model.norm",
    "LlamaForSequenceClassification": "model.norm",
}


def parts_by_running(model: PreTrainedModel, stack: BlockStack) -> dict[str, str]:
    """The module that holds each parameter outside of the blocks, and whether it runs before or behind them."""
    inside = {id(module) for block in stack.layers for module in block.modules()}
    events: list[str | None] = []
    hooks = [block.register_forward_pre_hook(lambda *_: events.append(None)) for block in stack.layers]
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if id(module) not in inside and own and not f"{stack.name}.".startswith(f"{name}." if name else ""):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: events.append(name)))
    with torch.no_grad():
        model(**example(model))
    for hook in hooks:
        hook.remove()
    if None not in events:
        pytest.skip("its blocks are not called")
    first, last = events.index(None), len(events) - 1 - events[::-1].index(None)
    found = {name: "behind" for name in events[last:] if name is not None}
    return found | {name: "before" for name in events[:first] if name is not None}


def side(part: Part) -> str:
    return "before" if part == "embedding" else "behind"


def check(name: str) -> None:
    try:
        model = build(entry_of(name))
    except NotBuiltError as error:
        pytest.skip(str(error))
    try:
        anatomy = find_anatomy(model)
    except InputError:
        pytest.skip("its blocks are not clear")
    assert anatomy.final_norm not in anatomy.after
    parts, sides = anatomy.parameters(), parts_by_running(model, anatomy.stack)
    tied = {id(p) for _, p in without_heads(model)[0].named_parameters()}
    for parameter_name, parameter in model.named_parameters():
        owner = parameter_name.rpartition(".")[0]
        if parameter_name.startswith(f"{anatomy.stack.name}."):
            number = int(parameter_name.removeprefix(f"{anatomy.stack.name}.").split(".")[0])
            assert parts[parameter_name] == number
        # a head that shares the table of embeddings counts to the embedding
        elif owner in sides and not (sides[owner] == "behind" and id(parameter) in tied and "head" in owner):
            assert side(parts[parameter_name]) == sides[owner], parameter_name
    # norms beside the blocks or what holds them, in the part without heads, that run behind them
    base = without_heads(model)[1]
    owners = [anatomy.stack.name.rsplit(".", count)[0] for count in range(1, anatomy.stack.name.count(".") + 1)] + [""]
    norms = {
        found
        for found, runs in sides.items()
        if runs == "behind" and found.startswith(base) and found.rpartition(".")[0] in owners
        if "norm" in type(model.get_submodule(found)).__name__.lower()
    }
    assert norms <= {anatomy.final_norm}
    if anatomy.final_norm is not None and dict(model.get_submodule(anatomy.final_norm).named_parameters()):
        assert norms == {anatomy.final_norm}


@pytest.mark.parametrize("name", SAMPLE)
def test_each_parameter_is_of_the_part_that_runs_there(name: str) -> None:
    check(name)
    assert find_anatomy(build(entry_of(name))).final_norm == SAMPLE[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({entry.name for entry in catalogue()} - set(SAMPLE)))
def test_each_parameter_of_every_class_is_of_the_part_that_runs_there(name: str) -> None:
    check(name)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("placement", ["pre", "none", "peri+qk_norm"])
def test_our_architectures_declare_what_is_found_in_the_stock_ones(architecture: str, placement: str) -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
    if ARCHITECTURES[architecture].is_causal:
        sizes["vocab_size"] = 50
    config = ARCHITECTURES[architecture].config_class.from_recipe(**sizes, intermediate_size=24, placement=placement)
    model = ARCHITECTURES[architecture].whole_class(config)
    anatomy = find_anatomy(model)
    stack = anatomy.stack.name
    assert anatomy.final_norm_module() is model.get_submodule(
        f"{model.base_model_prefix}.{model.model_class.final_norm_name}"
    )
    parts = anatomy.parameters()
    norms = [name for name, part in parts.items() if part == "embedding" and "norm" in name]
    # OLMo's norms have no parameters
    assert bool(norms) == (placement == "peri+qk_norm" and architecture != "olmo")
    assert {parts[name] for name in parts if name.startswith(f"{stack}.1.")} == {1}
    block = block_anatomy(anatomy.stack.layers[0])
    assert len(block.attention) == len(block.feed_forward) == 1
    assert not block.attention & block.feed_forward
    if placement == "peri+qk_norm":
        assert any(name.endswith("q_norm") for name in block.norms)


def test_wrapped_models_and_lists_by_name_are_read_as_they_are() -> None:
    class WithValueHead(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.pretrained_model, self.v_head = model, nn.Linear(32, 1)

        def forward(self, **inputs: Any) -> Any:
            return self.v_head(self.pretrained_model(**inputs).logits)

    anatomy = find_anatomy(WithValueHead(build(entry_of("LlamaForCausalLM"))))
    assert anatomy.stack.name == "pretrained_model.model.layers"
    assert anatomy.final_norm == "pretrained_model.model.norm"
    assert anatomy.parameters()["v_head.weight"] == "head"
    two = find_anatomy(build(entry_of("T5Model")), "decoder.block")
    assert two.final_norm == "decoder.final_layer_norm"
    assert two.parameters()["encoder.block.0.layer.0.SelfAttention.q.weight"] == "embedding"
    with pytest.raises(InputError, match=r"which list holds the blocks of a T5Model is not clear"):
        find_anatomy(build(entry_of("T5Model")))


def test_the_parts_of_a_block_are_told_by_their_names() -> None:
    model = build(entry_of("GPT2LMHeadModel"))
    parts = block_anatomy(model.get_submodule("transformer.h.0"))
    assert (parts.attention, parts.feed_forward, parts.norms) == ({"attn"}, {"mlp"}, {"ln_1", "ln_2"})
