"""The blocks of many architectures are found, and every measure agrees with what physical surgery gives."""

from __future__ import annotations

import copy

import pytest
import torch
from measure_architectures import ARCHITECTURES, MODELS, NUM_LAYERS, is_decoder, make_batch
from measure_surgery import remove_blocks
from torch import nn
from transformers import AutoModelForSeq2SeqLM, CLIPConfig, CLIPModel, PreTrainedModel, T5Config

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch
from mixln.measure.interventions import removals, silences
from mixln.measure.observation import observe
from mixln.measure.performance import EmbeddingTurn, LanguageModelLoss, Performance
from mixln.measure.performance_drop import PerformanceDrop
from mixln.measure.pruning import without_blocks
from mixln.measure.recording import recording
from mixln.measure.similarity import Similarity
from mixln.measure.sublayers import SUBLAYERS, SublayerFinder, SublayerShares, silenced
from mixln.models.anatomy import BlockStack, find_block_stack
from mixln.modes import evaluation_mode

each_model = pytest.mark.parametrize("name", MODELS)


def performance_of(model: PreTrainedModel) -> Performance:
    return LanguageModelLoss() if is_decoder(model) else EmbeddingTurn()


def mean_harm(model: PreTrainedModel, batch: ModelBatch, performance: Performance, whole: object) -> float:
    """Of the model as it is now, against an output of the whole one."""
    with evaluation_mode(model), torch.no_grad():
        judged = performance.on(whole, batch)
        return (judged.harm(model(**batch.arguments)).sum() / judged.counts.sum()).item()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_finds_the_blocks(name: str) -> None:
    model = ARCHITECTURES[name].build()
    stack = find_block_stack(model)
    assert stack.name == ARCHITECTURES[name].stack
    assert len(stack.layers) == NUM_LAYERS


@each_model
def test_removing_blocks_is_what_a_model_without_them_computes(name: str) -> None:
    model = MODELS[name]()
    batch, performance = make_batch(model), performance_of(model)
    for length in (1, 2):
        drops = PerformanceDrop(removals(length), performance)
        stack = observe(model, [batch], [drops])
        with torch.no_grad():
            whole = model(**batch.arguments)
        found = drops.drop().value
        for first in range(NUM_LAYERS + 1 - length):
            shorter = copy.deepcopy(model)
            remove_blocks(find_block_stack(shorter), range(first, first + length))
            expected = mean_harm(shorter, batch, performance, whole)
            with without_blocks(stack, range(first, first + length)):
                assert mean_harm(model, batch, performance, whole) == pytest.approx(expected, rel=1e-9, abs=1e-12)
            assert found[first].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert found.abs().min() > 1e-6
        assert find_block_stack(model).layers is stack.layers
        with torch.no_grad():
            assert mean_harm(model, batch, performance, whole) == pytest.approx(0, abs=1e-12)


@each_model
def test_sublayers_are_told_apart(name: str) -> None:
    """Without attention a token's output depends on no other token; without the feed-forward, the output changes."""
    model = MODELS[name]()
    batch = make_batch(model)
    stack = find_block_stack(model)
    finder = SublayerFinder()
    with torch.no_grad(), recording(stack) as record, finder.watch(stack):
        model(**batch.arguments)
    assert finder.is_complete()
    branches = {finder.branch(block, sublayer) for block in range(NUM_LAYERS) for sublayer in SUBLAYERS}
    assert len(branches) == 2 * NUM_LAYERS
    for index, block in enumerate(stack.layers):
        x, call = record.hidden_states[index], record.calls[index]
        changed = x.clone()
        changed[:, 0] += torch.linspace(-1, 1, x.shape[-1]).double() ** 3
        with torch.no_grad():
            moved = call.replay(block, changed) - call.replay(block, x)
            assert moved[:, 1:].abs().max() > 1e-6
            with silenced(finder.branch(index, "attention")):
                moved = call.replay(block, changed) - call.replay(block, x)
            assert moved[:, 1:].abs().max() < 1e-12
            with silenced(finder.branch(index, "feed_forward")):
                assert (call.replay(block, x) - record.hidden_states[index + 1]).abs().max() > 1e-6


class _Block(nn.Module):
    """Attention and feed-forward, and behind them a projection that is neither, as in Gemma 3n and 4."""

    def __init__(self, *, feed_forwards: int) -> None:
        super().__init__()
        self.self_attn = nn.Sequential(nn.Linear(4, 4))
        for number in range(feed_forwards):
            self.add_module(f"mlp_{number}", nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)))
        self.per_layer_projection = nn.Linear(4, 4)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            hidden_states = hidden_states + module(hidden_states)
        return hidden_states


def test_a_projection_behind_the_feed_forward_is_not_taken_for_it() -> None:
    for feed_forwards in (1, 2):
        model = nn.Sequential(_Block(feed_forwards=feed_forwards), _Block(feed_forwards=feed_forwards))
        finder = SublayerFinder()
        with finder.watch(BlockStack(model, "", model)):
            model(torch.ones(1, 2, 4))
        # of two side by side neither is the whole
        assert finder.is_complete() == (feed_forwards == 1)
        for index, block in enumerate(model):
            assert finder.branch(index, "attention") is block.get_submodule("self_attn.0")
            if feed_forwards == 1:
                assert finder.branch(index, "feed_forward") is block.get_submodule("mlp_0.1")


@each_model
def test_results_do_not_depend_on_batches_padding_side_or_order(name: str) -> None:
    model = MODELS[name]()
    batch = make_batch(model)

    def results(batches: list[ModelBatch]) -> list[torch.Tensor]:
        measures = Similarity(), SublayerShares(), PerformanceDrop(silences("attention"), performance_of(model))
        observe(model, batches, measures)
        found = [
            measures[0].angular_distance(),
            measures[0].block_influence(),
            measures[1].share("attention"),
            measures[1].share("feed_forward"),
            measures[2].drop(),
        ]
        return [part for one in found for part in (one.value, one.low, one.high)]

    whole = results([batch])
    ones = [batch.rows(row, row + 1) for row in range(len(batch.documents))]
    variants = [[batch.rows(0, 2), batch.rows(2, 5)], ones, ones[::-1]]
    # transformers' own softmax leaves nan where a padded row may look at nothing, and nan spreads
    if "position_ids" in batch.arguments and model.config._attn_implementation != "eager":
        variants.append([padded_left(batch)])
    for variant in variants:
        for one, other in zip(results(variant), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9, equal_nan=True)


def padded_left(batch: ModelBatch) -> ModelBatch:
    mask = batch.arguments["attention_mask"].bool()

    def moved(tensor: torch.Tensor, fill: int) -> torch.Tensor:
        result = torch.full_like(tensor, fill)
        for row, keep in enumerate(mask):
            result[row, len(keep) - int(keep.sum()) :] = tensor[row, keep]
        return result

    assert batch.targets is not None
    targets = moved(batch.targets, -100)
    attention_mask = moved(mask.long(), 0)
    arguments = {
        **batch.arguments,
        "input_ids": moved(batch.arguments["input_ids"], 0),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp_min(0),
    }
    return ModelBatch(arguments, targets != -100, targets, batch.documents)


def test_encoder_decoders_and_two_towers_are_not_guessed() -> None:
    t5 = AutoModelForSeq2SeqLM.from_config(
        T5Config(vocab_size=61, d_model=16, d_kv=4, d_ff=24, num_layers=3, num_decoder_layers=2, num_heads=4)
    )
    with pytest.raises(InputError, match=r"encoder\.block \(3 x T5Block\), decoder\.block \(2 x T5Block\).*`stack="):
        find_block_stack(t5)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = CLIPModel(
        CLIPConfig(text_config={**sizes, "vocab_size": 61}, vision_config={**sizes, "image_size": 8, "patch_size": 4})
    )
    with pytest.raises(InputError, match=r"text_model\S* \(2 x CLIPEncoderLayer\).*vision_model"):
        find_block_stack(clip)
