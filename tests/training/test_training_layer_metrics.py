from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import start_together
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mixln import MixLNLlamaConfig, MixLNLlamaForCausalLM
from mixln.data import Batch, PreparedData, training_batch
from mixln.measure import StreamGrowth, observe, record_block_inputs
from mixln.measure.forward import batch_logits
from mixln.tasks import Recipe, build_model
from mixln.tasks.layers import layer_activations, parameters_by_layer
from mixln.training.callbacks.layer_metrics import blame_activations as blame_modules
from mixln.training.callbacks.layer_metrics import layer_gradient_norms, layer_update_ratios
from mixln.training.compilation import uncompiled
from mixln.training.distributed import gathered_weights
from mixln.training.optimizer import build_optimizer

LAYERS = ["embedding", "layer_01", "layer_02", "layer_03", "layer_04", "final_norm", "head"]
WORLD = 2


def layer_of(name: str) -> str:
    """The reference: where each parameter of a Llama belongs, by its full name."""
    if ".layers." in name:
        return f"layer_{int(name.split('.layers.')[1].split('.')[0]) + 1:02}"
    return {"model.embed_tokens.weight": "embedding", "model.norm.weight": "final_norm", "lm_head.weight": "head"}[name]


def norm_by_layer(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    parts: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(layer_of(name), []).append(tensor.detach().double().flatten())
    return {layer: float(torch.cat(part).norm()) for layer, part in parts.items()}


def floats(values: dict[str, torch.Tensor]) -> dict[str, float]:
    assert all(value.ndim == 0 and value.dtype == torch.float32 for value in values.values())
    return {name: float(value) for name, value in values.items()}


def named(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{layer}": value for layer, value in values.items()}


def blame_activations(model: nn.Module, batch: Batch, dtype: torch.dtype | None) -> str | None:
    return blame_modules(model, lambda: batch_logits(model, batch), dtype)


def backward(model: nn.Module, batch: Batch) -> None:
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()


@pytest.fixture(params=["mix(alpha=0.5)", "pre"])
def placed(request: pytest.FixtureRequest, recipe: Recipe) -> Recipe:
    return replace(recipe, model=replace(recipe.model, placement=request.param))


@pytest.fixture
def batch(recipe: Recipe, data: PreparedData) -> Batch:
    return training_batch(data.train, 0, recipe.batch_size, recipe.seed)


def test_gradient_norms_are_those_of_all_a_layers_gradients(placed: Recipe, data: PreparedData, batch: Batch) -> None:
    model = build_model(placed, data.tokenizer)
    backward(model, batch)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = floats(layer_gradient_norms(parameters_by_layer(model)))
    assert list(found) == [f"gradient_norm/{layer}" for layer in LAYERS]
    assert found == pytest.approx(named("gradient_norm", norm_by_layer(gradients)), rel=1e-5)
    assert math.hypot(*found.values()) == pytest.approx(float(nn.utils.get_total_norm(gradients.values())), rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("beta1", [0.9, 0.0])
def test_update_ratios_are_those_of_a_step_really_taken(
    placed: Recipe, data: PreparedData, batch: Batch, name: str, weight_decay: float, beta1: float
) -> None:
    settings = replace(placed.optimizer, name=name, weight_decay=weight_decay, beta1=beta1)
    model = build_model(placed, data.tokenizer)
    optimizer = build_optimizer(settings, model)
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (step + 1)
        backward(model, batch)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        after = {name: p.detach() for name, p in model.named_parameters()}
        updates, weights = norm_by_layer({n: after[n].double() - before[n] for n in after}), norm_by_layer(after)
        found = floats(layer_update_ratios(parameters_by_layer(model), optimizer))
        expected = {layer: updates[layer] / weights[layer] for layer in LAYERS}
        assert found == pytest.approx(named("update_ratio", expected), rel=1e-3)
        assert all(torch.equal(p, after[n]) for n, p in model.named_parameters())


def test_amsgrad_and_parameters_that_took_no_step() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True, weight_decay=0.1)
    for scale in (10.0, 0.1):
        before = [p.detach().clone() for p in model[0].parameters()]
        (scale * model[0](torch.ones(2, 3)).square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    pairs = list(zip(model[0].parameters(), before, strict=True))
    update = torch.cat([(after.detach() - old).flatten() for after, old in pairs]).norm()
    weight = torch.cat([after.detach().flatten() for after, _ in pairs]).norm()
    (found,) = floats(layer_update_ratios(parameters_by_layer(model), optimizer)).values()
    assert found == pytest.approx(float(update / weight), rel=1e-3)


def test_update_ratios_are_of_adam_alone() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="not for SGD"):
        layer_update_ratios([], torch.optim.SGD(model.parameters(), lr=0.1))


def test_activations_against_hooks_written_by_hand(placed: Recipe, data: PreparedData, batch: Batch) -> None:
    model = build_model(placed, data.tokenizer)
    states: dict[str, torch.Tensor] = {}
    modules = {"embedding": model.get_submodule("model.embed_tokens")}
    for index, layer in enumerate(model.get_submodule("model.layers").children(), start=1):
        modules[f"layer_{index:02}"] = layer

    def keep(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            states[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    batch.targets[0, 40:] = -100  # as if padded
    few = Batch(batch.input_ids[:3], batch.targets[:3], batch.position_ids[:3])
    model(input_ids=few.input_ids, position_ids=few.position_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    counted = few.targets != -100
    expected: dict[str, float] = {}
    for layer, following in itertools.pairwise(LAYERS[:-1]):
        tokens = states[layer].detach().double()[counted]
        expected[f"activation_rms/{layer}"] = float(tokens.square().mean().sqrt())
        expected[f"residual_variance/{following}"] = float(tokens.var(-1, correction=0).mean())
    assert floats(layer_activations(model, batch, None, rows=3)) == pytest.approx(expected, rel=1e-5)
    assert model.training
    growth = StreamGrowth()
    observe(model, [few], [growth])
    variances = growth.variance().value
    assert [v for name, v in expected.items() if name.startswith("residual")] == pytest.approx(variances.tolist())


def test_activations_are_measured_in_the_precision_of_training(
    recipe: Recipe, data: PreparedData, batch: Batch
) -> None:
    model = build_model(recipe, data.tokenizer)
    whole, half = (floats(layer_activations(model, batch, dtype)) for dtype in (None, torch.bfloat16))
    assert whole != half
    assert half == pytest.approx(whole, rel=0.05)


def test_measuring_changes_nothing_that_training_depends_on(recipe: Recipe, data: PreparedData, batch: Batch) -> None:
    model = build_model(recipe, data.tokenizer)
    optimizer = build_optimizer(recipe.optimizer, model)
    backward(model, batch)
    optimizer.step()
    state = torch.get_rng_state()
    before = [tensor.clone() for p in model.parameters() for tensor in (p, p.grad) if tensor is not None]
    layer_gradient_norms(parameters_by_layer(model))
    layer_update_ratios(parameters_by_layer(model), optimizer)
    layer_activations(model, batch, torch.bfloat16)
    assert blame_activations(model, batch, None) is None
    after = [tensor for p in model.parameters() for tensor in (p, p.grad) if tensor is not None]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_blame_activations_names_the_first_that_is_not_finite(
    recipe: Recipe, data: PreparedData, batch: Batch, name: str, bad: float
) -> None:
    model = build_model(recipe, data.tokenizer)
    with torch.no_grad():
        for later in ("lm_head.weight", name):
            model.get_parameter(later).fill_(bad)
    assert blame_activations(model, batch, None) == name.removesuffix(".weight")


def test_a_compiled_model_is_measured_without_compiling_again(recipe: Recipe, data: PreparedData, batch: Batch) -> None:
    model = build_model(recipe, data.tokenizer)
    expected = floats(layer_activations(model, batch, None))
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> object:
        calls.append(1)
        return graph.forward

    wrapped = torch.compile(model, backend=backend)
    assert isinstance(wrapped, nn.Module)
    backward(wrapped, batch)
    compilations = len(calls)
    assert compilations >= 1
    with uncompiled():
        assert floats(layer_activations(model, batch, None)) == expected
        assert blame_activations(model, batch, None) is None
    assert list(layer_gradient_norms(parameters_by_layer(model))) == [f"gradient_norm/{layer}" for layer in LAYERS]
    backward(wrapped, batch)
    assert len(calls) == compilations
    torch._dynamo.reset()


def test_names_sort_by_depth_in_a_stack_of_a_hundred() -> None:
    model = nn.ModuleDict({"h": nn.ModuleList(nn.Linear(1, 1) for _ in range(100))})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    names = list(layer_gradient_norms(parameters_by_layer(model)))
    assert (names[0], names[-1]) == ("gradient_norm/layer_001", "gradient_norm/layer_100")
    assert names == sorted(names)


# Two processes. What they run is at the top of a module, so that a new process finds it.


def small_model() -> MixLNLlamaForCausalLM:
    # 5 rows of 13 are cut unevenly between two processes
    config = MixLNLlamaConfig(
        vocab_size=101,
        hidden_size=12,
        intermediate_size=13,
        num_hidden_layers=4,
        num_attention_heads=2,
        placement="mix(alpha=0.5)",
    )
    return MixLNLlamaForCausalLM(config).initialize(3)


def small_batch(rank: int = 0) -> Batch:
    tokens = torch.randint(101, (4, 9), generator=torch.Generator().manual_seed(rank))
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    return Batch(tokens, targets, torch.arange(9).expand(4, 9))


def two_steps(model: nn.Module) -> dict[str, float]:
    """Metrics of the second of two steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    values: dict[str, torch.Tensor] = {}
    inner: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    for _ in range(2):
        optimizer.zero_grad()
        backward(model, small_batch())
        values |= layer_gradient_norms(parameters_by_layer(inner))
        # here of all places: FSDP2 must not go on with the weights that it gathers for this
        with gathered_weights(model):
            values |= layer_activations(inner, small_batch(), None)
        optimizer.step()
        values |= layer_update_ratios(parameters_by_layer(inner), optimizer)
    return floats(values)


def shard_and_measure(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    try:
        mesh = init_device_mesh("cpu", (WORLD,))
        sharded = small_model()
        for layer in sharded.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        results: dict[str, object] = {"fsdp": two_steps(sharded)}
        assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        with torch.no_grad():
            sharded.get_parameter("model.layers.1.self_attn.q_proj.weight").fill_(math.nan)
        with gathered_weights(sharded):
            results["fsdp_blame_activations"] = blame_activations(sharded, small_batch(), None)

        replicated = DistributedDataParallel(small_model())
        results["ddp"] = two_steps(replicated)
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(tmp_path: Path) -> None:
    start_together(shard_and_measure, str(tmp_path), processes=WORLD)
    expected = two_steps(small_model())
    assert len(expected) == 7 + 7 + 5 + 5
    for rank in range(WORLD):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert results["fsdp"] == pytest.approx(expected, rel=1e-4)
        assert results["ddp"] == pytest.approx(expected, rel=1e-4)
        assert results["fsdp_blame_activations"] == "model.layers.1.self_attn.q_proj"


def test_the_batches_of_the_layers_are_counted_where_there_are_targets() -> None:
    batch = small_batch()
    model = small_model()
    states = record_block_inputs(model, batch).hidden_states
    only_first = torch.full_like(batch.targets, -100)
    only_first[:, 0] = 1
    found = layer_activations(model, replace(batch, targets=only_first), None, rows=4)
    expected = states[0][:, 0].square().mean().sqrt()
    torch.testing.assert_close(found["activation_rms/embedding"], expected)
