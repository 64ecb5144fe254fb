from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable

import pytest
import torch
from measure_reference import (
    Batch,
    build_llama,
    cut,
    evaluation_loss,
    reference_loss,
    reference_states,
    removal_drops,
    seen,
)
from torch import nn
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from mixln.errors import InputError
from mixln.measure import (
    LanguageModelLoss,
    ModelBatch,
    PerformanceDrop,
    Similarity,
    StreamGrowth,
    gradient_norms,
    observe,
    removals,
)
from mixln.measure.observation import Observation
from mixln.measure.recording import BlockRecord
from mixln.models.anatomy import find_block_stack

Measure = Callable[[nn.Module, Iterable[Batch]], torch.Tensor]


def angular_distances(model: nn.Module, batches: Iterable[Batch]) -> torch.Tensor:
    return seen(Similarity(), model, batches).angular_distance().value


def removal_loss_increase(model: nn.Module, batches: Iterable[Batch]) -> torch.Tensor:
    return removal_drops(model, batches).drop().value


def variance_by_layer(model: nn.Module, batches: Iterable[Batch]) -> torch.Tensor:
    return seen(StreamGrowth(), model, batches).variance().value


def gradient_norm_by_layer(
    model: nn.Module, batches: Iterable[Batch], *, autocast_dtype: torch.dtype | None = None
) -> torch.Tensor:
    return gradient_norms(model, batches, autocast_dtype=autocast_dtype, intervals=False).value


MEASURES: list[Measure] = [angular_distances, removal_loss_increase, variance_by_layer, gradient_norm_by_layer]
each_measure = pytest.mark.parametrize("measure", MEASURES)


def test_angular_distances_follow_the_definition(llama: LlamaForCausalLM, rows: Batch) -> None:
    measured = angular_distances(llama, cut(rows, 3))
    tokens = reference_states(llama, rows)
    assert measured.shape == (4, 4)
    assert measured.dtype == torch.float64
    for n in range(1, 5):
        for first in range(1, 5):
            entry = measured[n - 1, first - 1].item()
            if first + n > 5:
                assert math.isnan(entry)
                continue
            pairs = [(states[first - 1], states[first + n - 1]) for states in tokens]
            angles = [math.acos((x @ y / (x.norm() * y.norm())).item()) / math.pi for x, y in pairs]
            assert entry == pytest.approx(sum(angles) / len(angles), abs=1e-10)


def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The angular distance of each row of two states, which are the input and the output of one block."""
    stack = find_block_stack(build_llama())
    distances = []
    for pair in zip(x, y, strict=True):
        found = Similarity()
        batch = ModelBatch({}, torch.ones(1, 1, dtype=torch.bool), None, torch.zeros(1, dtype=torch.int64))
        found.update(Observation(stack, batch, BlockRecord([state[None, None] for state in pair])))
        distances.append(found.angular_distance().value[0, 0])
    return torch.stack(distances)


def test_angular_distance_of_known_vectors() -> None:
    x = torch.tensor([[2.0, 0, 0]] * 5 + [[0.0, 0, 0]])
    y = torch.tensor([[7.0, 0, 0], [0, 3, 0], [-1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
    expected = torch.tensor([0, 0.5, 1, 0.25, 0.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(distance(x, y), expected)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_angular_distance_is_exact_near_its_ends(scale: float) -> None:
    x = torch.randn(20, 512, generator=torch.Generator().manual_seed(0)) * scale
    assert distance(x, x).max() < 1e-7
    assert distance(x, 3 * x).max() < 1e-6
    assert (distance(x, -x) - 1).abs().max() < 1e-6
    small = torch.tensor(1e-5)
    turned = distance(torch.tensor([[1.0, 0]]), torch.stack([small.cos(), small.sin()])[None])
    assert turned.item() == pytest.approx(1e-5 / math.pi, rel=1e-4)


def test_removal_equals_the_loss_of_a_model_without_the_layer(llama: LlamaForCausalLM, rows: Batch) -> None:
    measured = removal_loss_increase(llama, cut(rows, 3))
    whole = reference_loss(llama, rows)
    for removed in range(4):
        shorter = copy.deepcopy(llama)
        del shorter.model.layers[removed]
        shorter.config.num_hidden_layers = 3
        assert measured[removed].item() == pytest.approx(reference_loss(shorter, rows) - whole, abs=1e-9)
    assert measured.abs().min() > 1e-4


def test_removal_sees_what_a_model_does_to_its_logits(rows: Batch) -> None:
    def cap(_model: nn.Module, _args: object, output: CausalLMOutputWithPast) -> None:
        assert output.logits is not None
        output.logits.tanh_()

    model = build_llama()
    model.register_forward_hook(cap)
    measured = removal_loss_increase(model, [rows])
    shorter = copy.deepcopy(model)
    del shorter.model.layers[1]
    shorter.config.num_hidden_layers = 3
    assert measured[1].item() == pytest.approx(reference_loss(shorter, rows) - reference_loss(model, rows), abs=1e-9)


def test_gradient_norms_are_those_of_the_loss_over_all_batches(llama: LlamaForCausalLM, rows: Batch) -> None:
    measured = gradient_norm_by_layer(llama, cut(rows, 3))
    reference = copy.deepcopy(llama).eval()
    logits = reference(input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False).logits
    losses = [-logits[i, t].log_softmax(-1)[rows.targets[i, t]] for i, t in (rows.targets != -100).nonzero().tolist()]
    torch.stack(losses).sum().backward()
    for index, layer in enumerate(reference.model.layers):
        gradients = [parameter.grad for parameter in layer.parameters()]
        squares = [gradient.square().sum().item() for gradient in gradients if gradient is not None]
        assert len(squares) == 9
        assert measured[index].item() == pytest.approx(math.sqrt(sum(squares)) / len(losses), rel=1e-9)


def test_gradient_measure_leaves_gradients_flags_and_hooks_alone(rows: Batch) -> None:
    model = build_llama()
    expected = gradient_norm_by_layer(model, [rows])
    q, k = (model.get_parameter(f"model.layers.0.self_attn.{name}_proj.weight") for name in "qk")
    q.grad = torch.full_like(q, 2.0)
    k.requires_grad_(False)
    q.register_post_accumulate_grad_hook(lambda _: pytest.fail("an optimiser in the backward pass would step"))
    with torch.no_grad():
        assert torch.equal(gradient_norm_by_layer(model, [rows]), expected)
    assert torch.equal(q.grad, torch.full_like(q, 2.0))
    assert not k.requires_grad
    assert q.requires_grad
    assert all(p.grad is None for p in model.parameters() if p is not q)
    assert model.training


def test_variance_follows_the_definition(llama: LlamaForCausalLM, rows: Batch) -> None:
    measured = variance_by_layer(llama, cut(rows, 3))
    tokens = reference_states(llama, rows)
    assert measured.shape == (5,)
    for index in range(5):
        variances = [((x[index] - x[index].mean()) ** 2).mean().item() for x in tokens]
        assert measured[index].item() == pytest.approx(sum(variances) / len(variances), rel=1e-10)


def test_a_layer_that_is_the_identity_turns_nothing_and_is_not_missed(rows: Batch) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = build_llama(layers=5, dtype=dtype)
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            nn.init.zeros_(model.get_parameter(f"model.layers.2.{name}.weight"))
        measured = angular_distances(model, cut(rows, 3))
        assert measured[0, 2] < 1e-6
        assert measured[0, [0, 1, 3, 4]].min() > 1e-2
        assert abs(removal_loss_increase(model, cut(rows, 3))[2].item()) < 1e-6
        variance = variance_by_layer(model, cut(rows, 3))
        assert variance[2] == variance[3]


def test_one_pass_gives_what_the_single_measures_give(llama: LlamaForCausalLM, rows: Batch) -> None:
    batches = cut(rows, 3)
    similarity, growth = Similarity(), StreamGrowth()
    drops = PerformanceDrop(removals(), LanguageModelLoss())
    observe(llama, iter(batches), [similarity, growth, drops])
    torch.testing.assert_close(
        similarity.angular_distance().value, angular_distances(llama, batches), equal_nan=True, rtol=0, atol=0
    )
    assert torch.equal(drops.drop().value, removal_loss_increase(llama, batches))
    assert torch.equal(growth.variance().value, variance_by_layer(llama, batches))
    whole = evaluation_loss(llama, batches)
    assert drops.whole().value.item() == pytest.approx(whole.mean, rel=1e-12)


@each_measure
def test_does_not_depend_on_batch_size(measure: Measure, rows: Batch) -> None:
    model = build_llama()
    whole = measure(model, [rows])
    for size in (1, 3):
        torch.testing.assert_close(measure(model, cut(rows, size)), whole, equal_nan=True, rtol=0, atol=1e-9)


@each_measure
def test_positions_without_a_target_do_not_count(measure: Measure, rows: Batch) -> None:
    model = build_llama()
    padded = rows.targets == -100
    padded &= torch.arange(20) >= 17
    other = Batch(torch.where(padded, rows.input_ids + 1, rows.input_ids), rows.targets, rows.position_ids)
    assert not torch.equal(other.input_ids, rows.input_ids)
    torch.testing.assert_close(measure(model, [other]), measure(model, [rows]), equal_nan=True, rtol=0, atol=1e-12)


@each_measure
def test_nothing_to_measure_is_an_error(measure: Measure, rows: Batch) -> None:
    unpredicted = Batch(rows.input_ids, torch.full_like(rows.targets, -100), rows.position_ids)
    for batches in ([], [unpredicted]):
        with pytest.raises(InputError, match="at least one batch"):
            measure(build_llama(), batches)


@each_measure
def test_leaves_the_mode_of_each_module(measure: Measure, rows: Batch) -> None:
    model = build_llama()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    measure(model, [rows])
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.filterwarnings("error")
@each_measure
def test_works_with_gradient_checkpointing_on(measure: Measure, rows: Batch) -> None:
    model = build_llama()
    expected = measure(model, [rows])
    for reentrant in (False, True):
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # newer transformers rename the method
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.testing.assert_close(measure(model, [rows]), expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("autocast_dtype", [None, torch.bfloat16])
def test_bfloat16_is_near_to_full_precision(autocast_dtype: torch.dtype | None, rows: Batch) -> None:
    """Under autocast (parameters in float32), and as a model held in bfloat16."""
    full = build_llama(dtype=torch.float32)
    half = full if autocast_dtype else build_llama(dtype=torch.bfloat16)

    def measured(model: nn.Module, batches: list[Batch], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        return [
            seen(Similarity(), model, batches, dtype).angular_distance().value,
            seen(StreamGrowth(), model, batches, dtype).variance().value,
            removal_drops(model, batches, dtype).drop().value,
        ]

    exact, rough = measured(full, [rows]), measured(half, cut(rows, 3), autocast_dtype)
    assert rough[0].dtype == rough[1].dtype == torch.float64
    torch.testing.assert_close(rough[0], exact[0], equal_nan=True, rtol=0, atol=0.01)
    torch.testing.assert_close(rough[1], exact[1], rtol=0.03, atol=0)
    torch.testing.assert_close(rough[2], exact[2], rtol=0, atol=0.05)
    gradients = gradient_norm_by_layer(half, cut(rows, 3), autocast_dtype=autocast_dtype)
    # 0.071 with PyTorch 2.11, below 0.05 with 2.14
    torch.testing.assert_close(gradients, gradient_norm_by_layer(full, [rows]), rtol=0.1, atol=0)
    assert not torch.equal(gradients, gradient_norm_by_layer(full, cut(rows, 3)))
