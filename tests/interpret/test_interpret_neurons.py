"""Entropy neurons: chosen by their definition, ablated as a hook would, and one that is planted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architecture_tools import tiny_architecture
from measure_reference import cut, make_rows
from torch import Tensor, nn

from mixln.errors import InputError
from mixln.interpret.entropy_neurons import EntropyNeurons, entropy_neurons
from mixln.measure.batches import model_batches

ROWS = make_rows()
COUNTED = ROWS.targets != -100


def found_in(model: nn.Module, **options: Any) -> EntropyNeurons:
    return entropy_neurons(model, list(model_batches(cut(ROWS, 3))), count=2, share=0.25, **options)


def down_projection(model: Any, architecture: str) -> tuple[nn.Module, Tensor]:
    """The module, and w_out by neuron."""
    mlp = (model.base_model.h if architecture == "gpt2" else model.base_model.layers)[-1].mlp
    return (mlp.c_proj, mlp.c_proj.weight) if architecture == "gpt2" else (mlp.down_proj, mlp.down_proj.weight.T)


def entropy_and_loss(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits = model(input_ids=ROWS.input_ids, position_ids=ROWS.position_ids, use_cache=False).logits
    logarithms = logits.double().log_softmax(-1)[COUNTED]
    entropy = -(logarithms.exp() * logarithms).sum(-1).mean()
    return torch.stack((entropy, -logarithms.gather(-1, ROWS.targets[COUNTED][:, None]).mean()))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("placement", ["none", "pre", "lns"])
def test_changes_are_those_of_a_model_with_the_neurons_at_their_means(architecture: str, placement: str) -> None:
    model = tiny_architecture(architecture, placement)
    found, module, whole = found_in(model), down_projection(model, architecture)[0], entropy_and_loss(model)
    torch.testing.assert_close(torch.stack((found.entropy.value, found.loss.value)), whole, atol=1e-5, rtol=1e-5)
    kept: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: kept.append(args[0].reshape(8, 20, -1)))
    entropy_and_loss(model)
    handle.remove()
    for index, chosen in enumerate([[found.neurons[0]], [found.neurons[1]], found.neurons]):

        def ablate(_module: nn.Module, args: tuple[Tensor], chosen: list[int] = chosen) -> tuple[Tensor]:
            activations = args[0].clone()
            activations[..., chosen] = kept[0][COUNTED][:, chosen].mean(0)
            return (activations,)

        handle = module.register_forward_pre_hook(ablate)
        change = entropy_and_loss(model) - whole
        handle.remove()
        got = torch.stack((found.entropy_change.value[index], found.loss_change.value[index]))
        torch.testing.assert_close(got, change, atol=1e-5, rtol=1e-3)
    if placement == "none":
        torch.testing.assert_close(found.entropy_change_held.value, found.entropy_change.value, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(found.loss_change_held.value, found.loss_change.value, atol=1e-6, rtol=1e-4)
    else:
        assert not torch.allclose(found.entropy_change_held.value, found.entropy_change.value, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_they_are_chosen_by_weight_norm_among_those_of_low_logit_variance(architecture: str) -> None:
    model: Any = tiny_architecture(architecture, "pre")
    found, weights = found_in(model), down_projection(model, architecture)[1].detach()
    norm = model.base_model.get_submodule(model.base_model.final_norm_name)
    head = model.lm_head.weight.detach() * norm.weight.detach()
    if architecture == "gpt2":
        head = head - head.mean(-1, keepdim=True)
    variances = torch.stack([torch.cosine_similarity(head, own[None]).var(correction=0) for own in weights])
    low = variances.argsort()[: len(weights) // 4]
    expected = low[weights.norm(dim=-1)[low].argsort(descending=True)[:2]]
    assert found.neurons == expected.tolist()
    assert found.layer == 4
    torch.testing.assert_close(found.weight_norm, weights.norm(dim=-1)[expected])
    torch.testing.assert_close(found.logit_variance, variances[expected])


def test_a_neuron_that_writes_what_the_head_does_not_read_acts_through_the_norm_alone() -> None:
    """Planted: the first channel has no weight in the head, and neuron 7 writes to it, and much."""
    model: Any = tiny_architecture("llama", "pre")
    with torch.no_grad():
        model.lm_head.weight[:, 0] = 0.0
        model.model.layers[-1].mlp.down_proj.weight[:, 7] = 0.0
        model.model.layers[-1].mlp.down_proj.weight[0, 7] = 20.0
    found = found_in(model)
    assert found.neurons[0] == 7
    assert found.logit_variance[0] == pytest.approx(0.0, abs=1e-12)
    assert found.entropy_change_held.value[0].item() == pytest.approx(0.0, abs=1e-6)
    assert abs(found.entropy_change.value[0].item()) > 1e-3


def test_batches_leave_no_trace_and_a_second_run_is_the_same() -> None:
    model = tiny_architecture("gpt2", "pre")
    one = found_in(model)
    for size in (3, 8):
        other = entropy_neurons(model, list(model_batches(cut(ROWS, size))), count=2, share=0.25)
        assert other.neurons == one.neurons
        torch.testing.assert_close(other.entropy_change.value, one.entropy_change.value, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(other.entropy_change.low, one.entropy_change.low, atol=1e-6, rtol=1e-5)


def test_models_without_such_neurons_are_refused() -> None:
    with pytest.raises(InputError, match="Post-LN"):
        found_in(tiny_architecture("llama", "post"))
    with pytest.raises(InputError, match="RMSNorm, not a linear layer"):
        found_in(tiny_architecture("llama", "sandwich"))
    model = tiny_architecture("llama", "pre")
    with pytest.raises(InputError, match="count is 99, and the last feed-forward has 48"):
        entropy_neurons(model, list(model_batches([ROWS])), count=99)
    with pytest.raises(InputError, match="share in"):
        entropy_neurons(model, list(model_batches([ROWS])), share=0.0)
    with pytest.raises(InputError, match="no token"):
        entropy_neurons(model, [])
