"""Pruned models: what they compute, how they are saved and loaded, and that they generate."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from measure_architectures import ARCHITECTURES, MODELS, NUM_LAYERS, build_placed, is_decoder, make_batch
from measure_surgery import remove_blocks
from torch import nn
from transformers import AutoModelForCausalLM

import mixln
from mixln.errors import InputError
from mixln.measure.interventions import removals
from mixln.measure.observation import observe
from mixln.measure.performance import LanguageModelLoss
from mixln.measure.performance_drop import PerformanceDrop
from mixln.measure.pruning import without_blocks
from mixln.models.anatomy import find_block_stack


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pruned_model_is_saved_and_opened_by_stock_classes(name: str, tmp_path: Path) -> None:
    model = ARCHITECTURES[name].build()
    batch = make_batch(model)
    stack = find_block_stack(model)
    with without_blocks(stack, [1, 2]), torch.no_grad():
        expected = model(**batch.arguments)[0]
    kept = [stack.layers[0], stack.layers[3]]
    left = remove_blocks(stack, [1, 2])
    assert list(left.layers) == kept
    assert model.config.num_hidden_layers == NUM_LAYERS - 2
    for position, block in enumerate(left.layers):
        assert {module.layer_idx for module in block.modules() if hasattr(module, "layer_idx")} <= {position}
    model.save_pretrained(tmp_path)
    loaded = getattr(transformers, ARCHITECTURES[name].model).from_pretrained(
        tmp_path, dtype=torch.float64, experts_implementation="eager"
    )
    assert type(loaded) is type(model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch.arguments)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in MODELS if is_decoder(MODELS[name]())])
def test_a_pruned_model_generates_with_its_cache_as_without(name: str) -> None:
    model = MODELS[name]()
    remove_blocks(find_block_stack(model), [1])
    input_ids = torch.tensor([[5, 9, 14, 3, 22, 8]])
    with torch.no_grad():
        whole = model(input_ids=input_ids, use_cache=False).logits
        first = model(input_ids=input_ids[:, :3], use_cache=True)
        cache, logits = first.past_key_values, [first.logits]
        for position in range(3, 6):
            step = model(input_ids=input_ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            logits.append(step.logits)
        torch.testing.assert_close(torch.cat(logits, dim=1), whole, rtol=1e-8, atol=1e-8)
        options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        generator: Any = model
        cached = generator.generate(input_ids, use_cache=True, **options)
        uncached = generator.generate(input_ids, use_cache=False, **options)
    assert torch.equal(cached, uncached)
    assert cached.shape == (1, 11)


@pytest.mark.parametrize("placement", ["lns", "deepnorm", "mix(alpha=0.5)"])
def test_survivors_keep_their_depth(placement: str, tmp_path: Path) -> None:
    """What depends on l and L goes by what they were before; also after pruning twice, and after loading."""
    model = build_placed(placement)
    batch = make_batch(model)
    drops = PerformanceDrop(removals(), LanguageModelLoss())
    observe(model, [batch], [drops])
    whole = drops.whole().value.item()
    remove_blocks(find_block_stack(model), [1])
    assert (model.config.placement_depths, model.config.placement_num_layers) == ([1, 3, 4], 4)
    remove_blocks(find_block_stack(model), [2])
    assert (model.config.placement_depths, model.config.placement_num_layers) == ([1, 3], 4)
    model.save_pretrained(tmp_path / "twice")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "twice", dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch.arguments).logits, model(**batch.arguments).logits)
    once = build_placed(placement)
    remove_blocks(find_block_stack(once), [1])
    again = PerformanceDrop(removals(), LanguageModelLoss())
    observe(once, [batch], [again])
    assert again.whole().value.item() - whole == pytest.approx(drops.drop().value[1].item(), abs=1e-10)


def test_per_layer_lists_of_the_config_are_shortened() -> None:
    model = MODELS["gemma2"]()
    before = list(model.config.layer_types)
    assert len(set(before)) == 2
    remove_blocks(find_block_stack(model), [0])
    assert model.config.layer_types == before[1:]


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ([], "no layer to remove"),
        ([4], "there is no layer 5: the model has layers 1 to 4"),
        ([-1], "there is no layer 0"),
        ([1, 1], "layer 2 is named twice"),
        ([0, 1, 2, 3], "all 4 layers would be removed"),
    ],
)
def test_what_cannot_be_removed_is_an_error_and_changes_nothing(removed: list[int], message: str) -> None:
    model = MODELS["llama"]()
    stack = find_block_stack(model)
    for remove in (lambda: remove_blocks(stack, removed), lambda: without_blocks(stack, removed).__enter__()):
        with pytest.raises(InputError, match=message):
            remove()
        assert find_block_stack(model).layers is stack.layers
        assert model.config.num_hidden_layers == 4


def test_a_model_is_whole_again_after_an_exception() -> None:
    model = MODELS["mixln mix"]()
    batch = make_batch(model)
    config = copy.deepcopy(model.config.to_dict())
    with torch.no_grad():
        expected = model(**batch.arguments).logits
        removal = without_blocks(find_block_stack(model), [0, 2])
        with removal:
            assert not torch.allclose(model(**batch.arguments).logits, expected)
        assert torch.equal(model(**batch.arguments).logits, expected)
        with pytest.raises(ZeroDivisionError), without_blocks(find_block_stack(model), [0, 2]):
            _ = 1 / 0
        assert torch.equal(model(**batch.arguments).logits, expected)
    assert model.config.to_dict() == config
    assert mixln.Placement.parse(model.config.placement)


def test_a_model_whose_config_does_not_count_its_layers_is_an_error() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})
    with pytest.raises(InputError, match="has no config of transformers"):
        remove_blocks(find_block_stack(model), [0])
