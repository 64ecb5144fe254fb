"""Measures against references written from their definitions, token by token or with the whole Jacobian."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from measure_architectures import MODELS, NUM_LAYERS, build_placed, is_decoder, make_batch
from torch import nn

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch
from mixln.measure.gradients import gradient_norms
from mixln.measure.growth import StreamGrowth
from mixln.measure.interventions import repeats, silences, swaps
from mixln.measure.jacobian import JacobianDistance
from mixln.measure.norm_scales import NormScales
from mixln.measure.observation import observe
from mixln.measure.performance import EmbeddingTurn, LanguageModelLoss
from mixln.measure.performance_drop import PerformanceDrop
from mixln.measure.recording import recording
from mixln.measure.similarity import Similarity
from mixln.measure.sublayers import SUBLAYERS, SublayerShares
from mixln.models.anatomy import find_block_stack


def states_of(model: nn.Module, batch: ModelBatch) -> list[torch.Tensor]:
    """x_1 .. x_(L+1) of each counted token, (states, hidden) each."""
    with torch.no_grad(), recording(find_block_stack(model)) as record:
        model(**batch.arguments)
    counted = batch.counted_in(record.hidden_states[0])
    return list(torch.stack([state[counted] for state in record.hidden_states], dim=1))


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_block_influence_follows_the_definition(name: str) -> None:
    model = MODELS[name]()
    batch = make_batch(model)
    similarity = Similarity()
    observe(model, [batch], [similarity])
    tokens = states_of(model, batch)
    for block in range(NUM_LAYERS):
        cosines = [(x[block] @ x[block + 1] / (x[block].norm() * x[block + 1].norm())).item() for x in tokens]
        expected = 1 - sum(cosines) / len(cosines)
        assert similarity.block_influence().value[block].item() == pytest.approx(expected, abs=1e-12)


def test_the_last_token_alone_can_be_measured() -> None:
    model = MODELS["llama"]()
    batch = make_batch(model)
    last = Similarity("last")
    observe(model, [batch], [last])
    with torch.no_grad(), recording(find_block_stack(model)) as record:
        model(**batch.arguments)
    angles = []
    assert batch.counted is not None
    for row, counted in enumerate(batch.counted):
        position = int(counted.nonzero().max())
        x, y = record.hidden_states[1][row, position], record.hidden_states[3][row, position]
        angles.append(math.acos((x @ y / (x.norm() * y.norm())).item()) / math.pi)
    assert last.angular_distance().value[1, 1].item() == pytest.approx(sum(angles) / len(angles), abs=1e-10)


@pytest.mark.parametrize("name", ["llama", "mpnet"])
def test_growth_follows_the_definition(name: str) -> None:
    model = MODELS[name]()
    batch = make_batch(model)
    growth = StreamGrowth()
    observe(model, [batch], [growth])
    tokens = states_of(model, batch)
    for state in range(NUM_LAYERS + 1):
        xs = [x[state] for x in tokens]
        assert growth.variance().value[state].item() == pytest.approx(
            sum(((x - x.mean()) ** 2).mean().item() for x in xs) / len(xs), rel=1e-10
        )
        assert growth.rms().value[state].item() == pytest.approx(
            sum((x**2).mean().sqrt().item() for x in xs) / len(xs), rel=1e-10
        )
        assert growth.norm().value[state].item() == pytest.approx(sum(x.norm().item() for x in xs) / len(xs), rel=1e-10)


def test_shares_are_those_of_what_a_block_adds() -> None:
    """In Pre-LN the branches add up to the difference of the states."""
    model = MODELS["llama"]()
    batch = make_batch(model)
    shares = SublayerShares()
    observe(model, [batch], [shares])
    without = copy.deepcopy(model)
    for layer in without.model.layers:
        nn.init.zeros_(layer.mlp.down_proj.weight)
    stack = find_block_stack(without)
    with torch.no_grad(), recording(find_block_stack(model)) as record:
        model(**batch.arguments)
    counted = batch.counted_in(record.hidden_states[0])
    for index in range(NUM_LAYERS):
        x = record.hidden_states[index]
        with torch.no_grad():
            attention = record.calls[index].replay(stack.layers[index], x) - x
        feed_forward = record.hidden_states[index + 1] - x - attention
        for name, branch in zip(SUBLAYERS, (attention, feed_forward), strict=True):
            expected = (branch.norm(dim=-1) / x.norm(dim=-1))[counted].mean().item()
            assert shares.share(name).value[index].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_swaps_and_repeats_are_what_rebuilt_models_compute(name: str) -> None:
    model = MODELS[name]()
    batch = make_batch(model)
    performance = LanguageModelLoss() if is_decoder(model) else EmbeddingTurn()
    swapped, repeated = PerformanceDrop(swaps, performance), PerformanceDrop(repeats, performance)
    stack = observe(model, [batch], [swapped, repeated])
    layers = stack.layers
    assert isinstance(layers, nn.ModuleList)
    with torch.no_grad():
        judged = performance.on(model(**batch.arguments), batch)

    def harm(order: list[int]) -> float:
        blocks = [copy.deepcopy(layers[index]) for index in order]
        parent, _, attribute = stack.name.rpartition(".")
        holder = model.get_submodule(parent)
        setattr(holder, attribute, nn.ModuleList(blocks))
        length = model.config.num_hidden_layers
        model.config.num_hidden_layers = len(blocks)
        try:
            with torch.no_grad():
                return (judged.harm(model(**batch.arguments)).sum() / judged.counts.sum()).item()
        finally:
            setattr(holder, attribute, layers)
            model.config.num_hidden_layers = length

    assert swapped.drop().value.tolist() == pytest.approx(
        [harm([1, 0, 2, 3]), harm([0, 2, 1, 3]), harm([0, 1, 3, 2])], rel=1e-9
    )
    assert repeated.drop().value.tolist() == pytest.approx(
        [harm(sorted([0, 1, 2, 3, index])) for index in range(NUM_LAYERS)], rel=1e-9
    )


def test_a_silenced_sublayer_is_one_whose_last_weight_is_zero() -> None:
    model = MODELS["opt"]()
    batch = make_batch(model)
    for sublayer, names in zip(SUBLAYERS, (["self_attn.out_proj"], ["fc2"]), strict=True):
        drops = PerformanceDrop(silences(sublayer), LanguageModelLoss())
        observe(model, [batch], [drops])
        for index in range(NUM_LAYERS):
            without = copy.deepcopy(model)
            for name in names:
                linear = without.get_submodule(f"model.decoder.layers.{index}.{name}")
                for parameter in linear.parameters():
                    nn.init.zeros_(parameter)
            with torch.no_grad():
                judged = LanguageModelLoss().on(model(**batch.arguments), batch)
                expected = judged.harm(without(**batch.arguments)).sum() / judged.counts.sum()
            assert drops.drop().value[index].item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_jacobian_distance_is_that_of_the_whole_jacobian() -> None:
    model = MODELS["llama"]()
    batch = make_batch(model).rows(0, 1)
    measure = JacobianDistance(draws=400)
    stack = observe(model, [batch], [measure])
    with torch.no_grad(), recording(stack) as record:
        model(**batch.arguments)
    counted = batch.counted_in(record.hidden_states[0])[0]
    for index in (0, NUM_LAYERS - 1):
        x = record.hidden_states[index]

        def block(x: torch.Tensor, index: int = index) -> torch.Tensor:
            return record.calls[index].replay(stack.layers[index], x)

        jacobian = torch.autograd.functional.jacobian(block, x)
        assert isinstance(jacobian, torch.Tensor)
        jacobian = jacobian[0][:, :, 0][counted][:, :, counted]
        size = int(counted.sum()) * x.shape[-1]
        difference = jacobian.reshape(size, size) - torch.eye(size, dtype=x.dtype)
        expected = (difference.norm() / math.sqrt(size)).item()
        assert measure.distance().value[index].item() == pytest.approx(expected, rel=0.03)


def test_the_jacobian_of_blocks_that_do_nothing_is_the_identity() -> None:
    model = MODELS["llama"]()
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    measure = JacobianDistance()
    observe(model, [make_batch(model)], [measure])
    assert measure.distance().value.abs().max() < 1e-12


def test_jacobian_draws_do_not_depend_on_batches() -> None:
    model = MODELS["bert"]()
    batch = make_batch(model)
    results = []
    for batches in ([batch], [batch.rows(0, 2), batch.rows(2, 5)]):
        measure = JacobianDistance()
        observe(model, batches, [measure])
        results.append(measure.distance().value)
    torch.testing.assert_close(*results, rtol=1e-9, atol=0)


PLACES = {
    "pre": (set(), {"input_layernorm", "post_attention_layernorm"}),
    "lns": (set(), {"input_layernorm", "post_attention_layernorm"}),
    "post": ({"post_attention_layernorm", "post_feedforward_layernorm"}, set()),
    "deepnorm": ({"post_attention_layernorm", "post_feedforward_layernorm"}, set()),
    "sandwich": (
        set(),
        {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"},
    ),
}


@pytest.mark.parametrize("placement", PLACES)
def test_norms_are_told_apart_by_what_they_do(placement: str) -> None:
    model = build_placed(placement)
    scales = NormScales()
    observe(model, [make_batch(model)], [scales])
    on_stream, in_branch = PLACES[placement]
    for block in range(1, NUM_LAYERS + 1):
        own = [scale for scale in scales.scales() if scale.block == block]
        assert {scale.name for scale in own if scale.is_on_stream} == on_stream
        assert {scale.name for scale in own if not scale.is_on_stream} == in_branch


@pytest.mark.parametrize(
    ("name", "on_stream"),
    [("gpt2", 0), ("opt", 0), ("gemma2", 0), ("olmo2", 0), ("gpt_neox", 0), ("bert", 2), ("mpnet", 2), ("vit", 0)],
)
def test_norms_of_architectures_are_told_apart_too(name: str, on_stream: int) -> None:
    model = MODELS[name]()
    scales = NormScales()
    observe(model, [make_batch(model)], [scales])
    assert [scale.is_on_stream for scale in scales.scales()].count(True) == on_stream * NUM_LAYERS
    assert {scale.block for scale in scales.scales()} == set(range(1, NUM_LAYERS + 1))


def test_scales_and_their_product_follow_the_definition() -> None:
    model = build_placed("post")
    batch = make_batch(model)
    inputs: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _m, args, name=name: inputs.__setitem__(name, args[0]))
        for name, module in model.named_modules()
        if "layers" in name and name.endswith("layernorm")
    ]
    with torch.no_grad():
        model(**batch.arguments)
    for handle in handles:
        handle.remove()
    scales = NormScales()
    observe(model, [batch], [scales])
    counted = batch.counted_in(next(iter(inputs.values())))
    sigmas = {name: ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1).sqrt()[counted] for name, x in inputs.items()}
    for scale in scales.scales():
        expected = sigmas[f"model.layers.{scale.block - 1}.{scale.name}"].mean().item()
        assert scale.sigma.value.item() == pytest.approx(expected, rel=1e-9)
    product = torch.stack([1 / sigma for sigma in sigmas.values()]).prod(0).log().mean().item()
    assert scales.log_gradient_factor().value.item() == pytest.approx(product, rel=1e-9)


def test_gradient_norms_have_intervals_and_the_same_values() -> None:
    model = MODELS["gpt2"]()
    batch = make_batch(model)
    found = gradient_norms(model, [batch.rows(0, 3), batch.rows(3, 5)])
    torch.testing.assert_close(found.value, gradient_norms(model, [batch], intervals=False).value, rtol=1e-9, atol=0)
    assert found.num_documents == 3
    # the linearised influence of a document is the derivative of the norm by its weight
    step = 1e-4
    layer = find_block_stack(model).layers[1]
    totals, counts = [], []
    assert batch.targets is not None
    for document in range(3):
        part = batch.select(batch.documents == document)
        assert part.targets is not None
        logits = model(**part.arguments).logits
        total = nn.functional.cross_entropy(logits.flatten(0, 1), part.targets.flatten(), reduction="sum")
        gradients = torch.autograd.grad(total, list(layer.parameters()))
        totals.append(torch.cat([gradient.flatten() for gradient in gradients]))
        counts.append(int((part.targets != -100).sum()))

    def norm(weights: list[float]) -> float:
        summed = sum(weight * total for weight, total in zip(weights, totals, strict=True))
        assert isinstance(summed, torch.Tensor)
        return summed.norm().item() / sum(weight * count for weight, count in zip(weights, counts, strict=True))

    influences = []
    for document in range(3):
        more, less = [1.0] * 3, [1.0] * 3
        more[document] += step
        less[document] -= step
        influences.append((norm(more) - norm(less)) / (2 * step))
    error = math.sqrt(3 / 2 * sum(influence**2 for influence in influences))
    assert (found.high - found.value)[1].item() == pytest.approx(4.302653 * error, rel=1e-5)


def test_what_has_no_loss_says_so() -> None:
    model = MODELS["bert"]()
    batch = make_batch(model)
    with pytest.raises(InputError, match="no targets"):
        gradient_norms(model, [batch])
    with pytest.raises(InputError, match="needs a model with a head"):
        observe(model, [batch], [PerformanceDrop(swaps, LanguageModelLoss())])
