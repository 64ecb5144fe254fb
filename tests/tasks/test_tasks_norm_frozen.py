"""Norms whose scale can be frozen: what they compute, for which tokens, and what changes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architecture_tools import CAUSAL
from models_tools import logits_of, tensors_of, token_ids
from norm_removal_reference import LITERAL
from norm_removal_tools import END_OF_TEXT, freeze_all, frozen_model, trained, with_norms
from torch import nn

from mixln.errors import InputError
from mixln.models.transformers_internals import enable_activation_checkpointing
from mixln.placement import NORM, BlockPlan, Placement, SublayerPlan, register_scheme
from mixln.placement.registry import SCHEMES
from mixln.tasks.norm_removal import check_norms_removable, install_frozen_norms
from mixln.tasks.norm_removal.frozen_norm import FIRST_POSITION
from mixln.tasks.objective import document_mask

PRE_LN = [name for name in CAUSAL if name not in ("olmo2", "qwen3")]

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")


@pytest.mark.parametrize("name", PRE_LN)
def test_putting_them_in_keeps_the_function(name: str) -> None:
    model, ids = trained(name, "lns"), token_ids()
    before = logits_of(model, ids)
    with_norms(model, seen=False)
    torch.testing.assert_close(logits_of(model, ids), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PRE_LN)
def test_frozen_at_a_tokens_own_std_it_is_the_real_norm(name: str) -> None:
    model: Any = trained(name, "pre")
    real = model.base_model.ln_f if name == "gpt2" else model.base_model.norm
    x = 3 * torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0)) + 1
    expected = real(x)
    norm = with_norms(model, seen=False).norms["final", None]
    norm.classes.read(torch.tensor([[7]]), torch.tensor([[3]]))
    variance = x.var(unbiased=False) if norm.centered else x.pow(2).mean()
    norm.sigma.fill_(float(torch.sqrt(variance + norm.eps)))
    norm.frozen.fill_(True)
    torch.testing.assert_close(norm(x), expected, rtol=1e-6, atol=1e-6)
    norm.sigma *= 2
    torch.testing.assert_close(norm(2 * x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("text", ["pre", "lns"])
@pytest.mark.parametrize("name", LITERAL)
def test_frozen_it_is_the_formula_by_path_and_class(name: str, text: str) -> None:
    model = trained(name, text)
    norms = with_norms(model)
    freeze_all(norms, merge=False)
    scales = {(path, layer): norm.sigma[norm.paths.index(path)] for (path, layer), norm in norms.norms.items()}
    assert all(len(set(scale.tolist())) == 3 for scale in scales.values())
    gains = [depth**-0.5 if text == "lns" else 1.0 for depth in range(1, 5)]
    row = token_ids(rows=1, length=14)[0].tolist()
    row[4] = row[9] = END_OF_TEXT
    expected = LITERAL[name](dict(model.named_parameters()), row, scales, gains, END_OF_TEXT)
    found = logits_of(model, torch.tensor([row]))[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_query_and_key_are_frozen_apart_from_value(name: str) -> None:
    model, ids = trained(name, "pre"), token_ids()
    norms = with_norms(model)
    found = {"none": logits_of(model, ids)}
    norms.freeze("query_key", 1)
    found["query_key"] = logits_of(model, ids)
    norms.freeze("value", 1)
    found["both"] = logits_of(model, ids)
    norms.norms["query_key", 1].frozen[0] = False
    found["value"] = logits_of(model, ids)
    distinct = {tuple(logits.flatten().tolist()) for logits in found.values()}
    assert len(distinct) == 4


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_documents_packed_into_a_row_are_classed_as_if_alone(name: str) -> None:
    model = trained(name, "pre")
    norms = with_norms(model)
    freeze_all(norms, merge=False)
    model.set_attn_implementation("sdpa")
    ids = token_ids(rows=1, length=15)
    ids[0, 6] = ids[0, 14] = END_OF_TEXT
    positions = torch.cat([torch.arange(7), torch.arange(8)])[None]
    mask: Any = document_mask(positions, "sdpa", torch.float32)
    packed = logits_of(model, ids, position_ids=positions, attention_mask=mask)
    assert norms.classes.ids is not None
    assert norms.classes.ids.tolist() == [[1, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 2]]
    alone = torch.cat([logits_of(model, part) for part in (ids[:, :7], ids[:, 7:])], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_in_evaluation_every_buffer_stays_as_it_is() -> None:
    model, _ = frozen_model("gpt2", "pre")
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    for seed in range(3):
        logits_of(model, token_ids(seed=seed))
    after = tensors_of(model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert any(name.endswith("average_std") for name in before)


def test_averages_move_by_what_a_step_has_seen() -> None:
    model: Any = trained("gpt2", "pre")
    norms = with_norms(model, seen=False)
    norm = norms.norms["final", None]
    seen: list[torch.Tensor] = []
    handle = model.base_model.ln_f.register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].detach()) if torch.is_grad_enabled() else None
    )
    model.train()
    averages: list[torch.Tensor] = []
    for step in range(2):
        ids = token_ids(rows=3, length=10, seed=step)
        ids[:, 5] = END_OF_TEXT
        model(input_ids=ids, use_cache=False)
        norms.begin_step()  # what came before, such as a search for what went wrong, counts for nothing
        model(input_ids=ids, use_cache=False)
        with torch.no_grad():  # as measurements between steps do: they count for nothing
            model(input_ids=ids[:1], use_cache=False)
        norms.finish_step(torch.tensor(True), lambda totals: totals)
        averages.append(norm.average_std.clone())
        norms.finish_step(torch.tensor(False), lambda totals: totals)  # nor does a step whose update is left out
        assert torch.equal(norm.average_std, averages[-1])
    handle.remove()
    own = []
    for states in seen[1::2]:
        stds = torch.sqrt(states.var(-1, unbiased=False) + norm.eps)
        ordinary = [position for position in range(10) if position not in (0, 5)]
        own.append(torch.stack([stds[:, ordinary].mean(), stds[:, 0].mean(), stds[:, 5].mean()]))
    torch.testing.assert_close(averages[0], own[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(averages[1], 0.9 * own[0] + 0.1 * own[1], rtol=1e-5, atol=1e-6)


def test_averages_are_those_of_all_processes_and_micro_batches() -> None:
    ids = token_ids(rows=4, length=10)
    ids[0, 5] = END_OF_TEXT
    found: list[dict[str, torch.Tensor]] = []
    for shares in ([[ids]], [[ids[:1]], [ids[1:]]], [[ids[:1], ids[1:2]], [ids[2:]]]):
        models: list[Any] = [trained("gpt2", "pre", num_hidden_layers=2).train() for _ in shares]
        norms = [with_norms(model, seen=False) for model in models]
        for model, own, micro_batches in zip(models, norms, shares, strict=True):
            own.begin_step()
            for part in micro_batches:
                # blocks are computed twice, and what they see counts once or in both sum and number
                enable_activation_checkpointing(model)
                model(input_ids=part, use_cache=False).logits.sum().backward()
        added_up = torch.stack([torch.stack([norm.totals for norm in own.norms.values()]) for own in norms]).sum(0)
        for norm, totals in zip(norms[0].norms.values(), added_up, strict=True):
            norm.finish_step(totals, torch.tensor(True))
        found.append({name: value for name, value in tensors_of(models[0]).items() if name.endswith("average_std")})
    assert len(found[0]) == 5
    for others in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(others[name], value, rtol=1e-5, atol=1e-6)


def test_in_evaluation_gradients_change_nothing_either() -> None:
    model, _ = frozen_model("gpt2", "pre")
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    model(input_ids=token_ids(), use_cache=False).logits.sum().backward()  # as attribution patching does
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(model).items())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_first_token_is_found_behind_padding_and_a_cache(name: str) -> None:
    model, norms = frozen_model(name, "pre")
    ids = token_ids(rows=2, length=9)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert norms.classes.ids is not None
    assert (norms.classes.ids == FIRST_POSITION).nonzero().tolist() == [[0, 0], [1, 3]]
    start = model(input_ids=ids[:1, :4], use_cache=True)
    model(input_ids=ids[:1, 4:], past_key_values=start.past_key_values)
    assert not (norms.classes.ids == FIRST_POSITION).any()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_freezing_and_merging_compile_nothing_anew(name: str) -> None:
    model: Any = trained(name, "lns", num_hidden_layers=2).train()
    norms = with_norms(model, seen=False)
    torch._dynamo.reset()
    blocks = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False, fullgraph=True, backend="eager")

    def step(seed: int) -> torch.Tensor:
        output = model(input_ids=token_ids(seed=seed), use_cache=False).logits
        output.sum().backward()
        norms.finish_step(torch.tensor(True), lambda totals: totals)
        return output.detach()

    # once more, since the first gradients are there only then
    first = [step(0), step(0)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for path, layer in list(norms.norms):
            norms.freeze(path, layer)
            step(1)
        norms.merge("first_position")
        norms.merge("end_of_text")
        assert not torch.equal(step(0), first[0])
    torch._dynamo.reset()


REFUSED = {
    "none": "has no norms",
    "post": r"norms on the residual path \(Post-LN\)",
    "mix": "Post-LN",
    "sandwich": r"behind sublayers \(N_branch\)",
    "peri": r"behind sublayers \(N_branch\) and on the embedding",
    "pre+qk_norm": "on queries, keys or values",
    "pre+dyt": "has dyt norms",
    "groupnorm": "has grouped norms",
}


@pytest.mark.parametrize("text", REFUSED)
def test_norms_that_cannot_go_are_refused_with_the_reason(text: str) -> None:
    with pytest.raises(InputError, match=REFUSED[text]):
        install_frozen_norms(trained("llama", text), END_OF_TEXT)


def test_what_would_be_left_beside_the_norms_is_refused() -> None:
    @register_scheme("test_bypassed")
    def bypassed(depth: int, num_layers: int) -> BlockPlan:
        del depth, num_layers
        return BlockPlan(SublayerPlan(input_norm=NORM), SublayerPlan(input_norm=NORM, bypass=1.0))

    try:
        with pytest.raises(InputError, match=r"that none does not have: .*\(bypass\) \(feed-forward, layers 1-4\)"):
            check_norms_removable(Placement.parse("test_bypassed").plan(4), "test_bypassed")
    finally:
        del SCHEMES["test_bypassed"]


def test_tokens_are_looked_at() -> None:
    model, _ = frozen_model("llama", "pre")
    with pytest.raises(ValueError, match="give input_ids"):
        model(inputs_embeds=nn.Embedding(97, 32)(token_ids()))
