from __future__ import annotations

from typing import Any

import pytest
import torch
from measure_reference import Batch, build_llama, reference_states, removal_drops
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaForCausalLM

from mixln.errors import InputError
from mixln.measure import record_block_inputs, run_blocks
from mixln.measure.recording import recording, run_tail
from mixln.models.anatomy import find_block_stack
from mixln.modes import evaluation_mode


def test_finds_the_blocks_of_a_llama(llama: LlamaForCausalLM) -> None:
    stack = find_block_stack(llama)
    assert stack.name == "model.layers"
    assert stack.layers is llama.model.layers


def test_a_model_without_final_norm_is_measured(rows: Batch) -> None:
    model = build_llama()
    model.model.add_module("norm", nn.Identity())
    assert removal_drops(model, [rows]).whole().value > 0


def two_towers() -> nn.Module:
    return nn.ModuleDict(
        {
            "text": nn.ModuleList(nn.Linear(2, 2) for _ in range(3)),
            "image": nn.ModuleList(nn.Linear(2, 2) for _ in range(3)),
        }
    )


def test_what_cannot_be_told_is_an_error_that_names_the_candidates_and_the_option() -> None:
    with pytest.raises(InputError, match=r"text \(3 x Linear\), image \(3 x Linear\).*`stack=text`"):
        find_block_stack(two_towers())
    assert find_block_stack(two_towers(), "image").name == "image"
    with pytest.raises(InputError, match=r"no list of blocks"):
        find_block_stack(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"`stack=sound`: is not there.*text \(3 x Linear\)"):
        find_block_stack(two_towers(), "sound")
    with pytest.raises(InputError, match=r"`stack=text.0`: is a Linear"):
        find_block_stack(two_towers(), "text.0")


def test_blocks_that_do_not_feed_each_other_are_an_error(rows: Batch) -> None:
    model = build_llama()

    def add_one(
        _block: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        return (args[0] + 1, *args[1:]), kwargs

    # as if the model changed the stream between its blocks
    forward = model.model.layers[2].forward
    model.model.layers[2].register_forward_pre_hook(add_one, with_kwargs=True)
    with pytest.raises(InputError, match=r"output of block 2 of model\.layers is not the input of block 3"):
        record_block_inputs(model, rows)
    assert model.model.layers[2].forward == forward


def test_records_the_input_of_each_block_and_the_last_output_before_the_final_norm(
    llama: LlamaForCausalLM, rows: Batch
) -> None:
    record = record_block_inputs(llama, rows)
    assert len(record.hidden_states) == 5
    assert len(record.calls) == 4
    mask = rows.targets != -100
    for token, expected in enumerate(reference_states(llama, rows)):
        for index, state in enumerate(expected):
            torch.testing.assert_close(record.hidden_states[index][mask][token], state)
    with evaluation_mode(llama), torch.no_grad():
        after_norm = llama.model(rows.input_ids, position_ids=rows.position_ids, use_cache=False).last_hidden_state
    assert not torch.allclose(record.hidden_states[-1], after_norm)
    torch.testing.assert_close(llama.model.norm(record.hidden_states[-1]), after_norm)


def test_blocks_run_again_give_what_they_gave(llama: LlamaForCausalLM, rows: Batch) -> None:
    record = record_block_inputs(llama, rows)
    stack = find_block_stack(llama)
    with evaluation_mode(llama), torch.no_grad():
        for start in range(5):
            again = run_blocks(stack, record.hidden_states[start], record, range(start, 4))
            assert torch.equal(again, record.hidden_states[-1])


def test_takes_other_block_names_tuple_outputs_and_keyword_inputs(rows: Batch) -> None:
    config = GPT2Config(vocab_size=61, n_positions=64, n_embd=32, n_layer=3, n_head=4)
    gpt2 = AutoModelForCausalLM.from_config(config)
    assert find_block_stack(gpt2).layers is gpt2.transformer.h
    assert removal_drops(gpt2, [rows]).drop().value.shape == (3,)

    class ByKeyword(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> tuple[torch.Tensor, None]:
            return self.block(hidden_states=hidden_states, **kwargs), None

    class Chain(nn.ModuleList):
        """Calls each block by keyword and unpacks its tuple, as some decoders do."""

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            for block in self:
                (hidden_states, _) = block(hidden_states=hidden_states)
            return hidden_states

    class Affine(nn.Linear):
        def forward(self, input: torch.Tensor | None = None, *, hidden_states: torch.Tensor | None = None):
            chosen = hidden_states if hidden_states is not None else input
            assert chosen is not None
            return super().forward(chosen)

    chain = Chain([ByKeyword(Affine(4, 4)) for _ in range(3)])
    holder = nn.ModuleDict({"chain": chain})
    stack = find_block_stack(holder)
    x = torch.randn(2, 5, 4)
    with recording(stack) as record:
        output = chain(x)
    assert torch.equal(record.hidden_states[-1], output)
    assert torch.equal(run_blocks(stack, x, record, range(3)), output)


def test_the_tail_of_a_model_is_its_own(rows: Batch) -> None:
    """Caps on logits, norms and heads are not taken apart: the model is run with its blocks bypassed."""
    config = Gemma2Config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=2.0,
        initializer_range=0.2,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    stack = find_block_stack(model)
    arguments = {"input_ids": rows.input_ids, "use_cache": False}
    with torch.no_grad():
        with recording(stack) as record:
            logits = model(**arguments).logits
        again = run_tail(stack, record.hidden_states[-1], record, arguments).logits
        other = run_tail(stack, record.hidden_states[0], record, arguments).logits
        after = model(**arguments).logits
    assert torch.equal(again, logits)
    assert not torch.allclose(other, logits)
    assert torch.equal(after, logits)


def test_hooks_are_removed_and_the_mode_comes_back_after_an_exception(rows: Batch) -> None:
    model = build_llama()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    handle = model.model.layers[2].register_forward_hook(fail)
    with pytest.raises(InputError, match=r"a LlamaForCausalLM cannot be run.*RuntimeError: in the middle"):
        record_block_inputs(model, rows)
    handle.remove()
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.model.layers)
    assert [module.training for module in model.modules()] == modes
    record_block_inputs(model, rows)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.model.layers)
    assert [module.training for module in model.modules()] == modes


def test_shared_and_skipped_blocks_are_an_error(rows: Batch) -> None:
    shared = build_llama()
    shared.model.layers[3] = shared.model.layers[2]
    with pytest.raises(InputError, match="run once"):
        record_block_inputs(shared, rows)
    skipped = build_llama()
    skipped.config.num_hidden_layers = 3
    with pytest.raises(InputError, match="3 block calls"):
        record_block_inputs(skipped, rows)
