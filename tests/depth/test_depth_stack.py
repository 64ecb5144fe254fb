from __future__ import annotations

import pytest
import torch
from depth_reference import Batch, build_llama, reference_states
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaForCausalLM

from mixln.depth import evaluation_mode, find_block_stack, measure_trained_depth, record_block_inputs, run_blocks_from
from mixln.depth.stack import recording
from mixln.errors import InputError


def test_finds_the_parts_of_a_llama(llama: LlamaForCausalLM) -> None:
    stack = find_block_stack(llama)
    assert stack.decoder is llama.model
    assert stack.layers is llama.model.layers
    assert stack.final_norm is llama.model.norm
    assert stack.head is llama.lm_head


def test_a_model_without_final_norm_has_an_identity_there(rows: Batch) -> None:
    model = build_llama()
    model.model.add_module("norm", nn.Identity())
    assert isinstance(find_block_stack(model).final_norm, nn.Identity)
    assert measure_trained_depth(model, [rows]).loss.num_tokens > 0


@pytest.mark.parametrize("part", ["model", "headless", "linear", "no layers"])
def test_a_model_of_another_shape_gets_an_error_that_says_what_was_looked_for(part: str) -> None:
    llama = build_llama()
    model: nn.Module = {"model": llama.model, "headless": llama, "linear": nn.Linear(2, 2), "no layers": llama}[part]
    if part == "headless":
        llama.add_module("lm_head", None)
    if part == "no layers":
        llama.model.layers = nn.ModuleList()
    with pytest.raises(InputError, match=r"get_decoder\(\).*ModuleList called layers"):
        find_block_stack(model)


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
            again = run_blocks_from(stack, record.hidden_states[start], record.calls, range(start, 4))
            assert torch.equal(again, record.hidden_states[-1])


def test_takes_other_block_names_tuple_outputs_and_keyword_inputs(rows: Batch) -> None:
    config = GPT2Config(vocab_size=61, n_positions=64, n_embd=32, n_layer=3, n_head=4)
    gpt2 = AutoModelForCausalLM.from_config(config)
    assert find_block_stack(gpt2).layers is gpt2.transformer.h
    assert measure_trained_depth(gpt2, [rows]).removal_loss_increase.shape == (3,)

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
    parts = find_block_stack(gpt2)
    stack = type(parts)(decoder=chain, layers=chain, final_norm=nn.Identity(), head=nn.Identity())
    x = torch.randn(2, 5, 4)
    with recording(stack) as record:
        output = chain(x)
    assert torch.equal(record.hidden_states[-1], output)
    assert torch.equal(run_blocks_from(stack, x, record.calls, range(3)), output)


def test_hooks_are_removed_and_the_mode_comes_back_after_an_exception(rows: Batch) -> None:
    model = build_llama()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    handle = model.model.layers[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
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
