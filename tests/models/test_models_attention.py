"""Norms of query, key and value behind the projections of transformers' own attention, in every architecture."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from architecture_tools import CAUSAL, NAMES, STOCK, inputs_of, tiny_architecture
from models_tools import as_given, logits_of, token_ids
from torch import nn
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import LlamaAttention

from mixln.models.attention import PlacedAttention
from mixln.models.transformers_internals import check_reads
from mixln.placement import QKVNormPlan

NORMED = ["pre+qk_norm", "pre+qk_norm(per_head=false)", "hybrid", "reordered+qk_norm"]
SPY = "mixln_test_spy"


@pytest.mark.parametrize("text", NORMED)
@pytest.mark.parametrize("name", CAUSAL)
def test_generation_with_the_cache_is_generation_without(name: str, text: str) -> None:
    model: Any = tiny_architecture(name, text)
    ids = token_ids(rows=1)
    with_cache, without = (
        model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=cached, pad_token_id=0)
        for cached in (True, False)
    )
    assert with_cache.shape == (1, ids.shape[1] + 12)
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize("text", NORMED)
@pytest.mark.parametrize("name", CAUSAL)
def test_left_padding_changes_nothing(name: str, text: str) -> None:
    model: Any = tiny_architecture(name, text)
    ids = token_ids(rows=1)
    padded = F.pad(ids, (3, 0))
    mask = F.pad(torch.ones_like(ids), (3, 0))
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        found = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(found, logits_of(model, ids), rtol=1e-4, atol=1e-5)


Seen = list[tuple[list[torch.Tensor], dict[str, Any]]]


@pytest.fixture
def attended() -> Iterator[Seen]:
    """What the function of attention is called with; use it with `set_attn_implementation(SPY)`."""
    seen: Seen = []

    def attend(_module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **kwargs: Any) -> Any:
        seen.append(([query, key, value], {"mask": mask, "scaling": scaling, **kwargs}))
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return mixed.transpose(1, 2), None

    AttentionInterface.register(SPY, attend)
    yield seen
    AttentionInterface._global_mapping.pop(SPY)


@pytest.mark.parametrize("text", NORMED)
@pytest.mark.parametrize("name", NAMES)
def test_attention_is_called_as_without_norms(name: str, text: str, attended: Seen) -> None:
    for one in ("pre", text):
        model: Any = tiny_architecture(name, one)
        model.set_attn_implementation(SPY)
        model(**as_given(inputs_of(name)), extra_argument=7)
    half = len(attended) // 2
    for (_, plain), (_, normed) in zip(attended[:half], attended[half:], strict=True):
        assert plain.keys() == normed.keys()
        assert normed["extra_argument"] == 7
        assert all(
            value == normed[key] for key, value in plain.items() if isinstance(value, (int, float, str, type(None)))
        )


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_query_and_key_are_those_of_the_equation(name: str, per_head: bool, attended: Seen) -> None:
    """q = Norm(W_q x), over each head or over the full width, before positions; W_v x as it is."""
    model: Any = tiny_architecture(name, f"pre+qk_norm(per_head={str(per_head).lower()})", num_hidden_layers=1)
    model.set_attn_implementation(SPY)
    attention: Any = next(one for one in model.modules() if isinstance(one, PlacedAttention))
    inputs: list[torch.Tensor] = []
    attention.register_forward_pre_hook(
        lambda _module, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**as_given(one_position(name)))
        hidden = inputs[0]
        if hasattr(attention, "c_attn"):
            projected = (hidden @ attention.c_attn.weight + attention.c_attn.bias).chunk(3, dim=-1)
        else:
            projected = [F.linear(hidden, one.weight, one.bias) for one in map(attention.get_submodule, PROJECTIONS)]
        ((query, key, value),) = (states for states, _ in attended)
        for found, states, norm in (
            (query, projected[0], attention.q_norm),
            (key, projected[1], attention.k_norm),
            (value, projected[2], None),
        ):
            heads = states.unflatten(-1, (-1, attention.head_dim))
            if norm is not None:
                heads = norm(heads) if per_head else norm(states).unflatten(-1, (-1, attention.head_dim))
            torch.testing.assert_close(found.transpose(1, 2), heads, rtol=1e-5, atol=1e-6)


PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def one_position(name: str) -> torch.Tensor:
    """A token at position 0, where a rotation is the identity; or an image, which has no rotation."""
    return token_ids(rows=1, length=1) if name in CAUSAL else inputs_of(name, rows=1)


@pytest.mark.parametrize("text", ["pre+qk_norm", "hybrid"])
@pytest.mark.parametrize("name", NAMES)
def test_norms_stand_behind_adapters(name: str, text: str) -> None:
    """Norm(W x + B A x): the update belongs to the matrix, which merging shows."""
    peft = pytest.importorskip("peft")
    model = tiny_architecture(name, text)
    attention: Any = next(one for one in model.modules() if isinstance(one, PlacedAttention))
    targets = list(attention.projection_parts)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, fan_in_fan_out=name == "gpt2"))
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = adapted(**as_given(inputs_of(name))).logits
        assert not torch.allclose(expected, logits_of(tiny_architecture(name, text), inputs_of(name)), atol=1e-2)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, inputs_of(name)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_without_norms_the_architecture_keeps_none_of_its_own(name: str) -> None:
    model = tiny_architecture(name, "pre")
    assert not [one for one, _ in model.named_parameters() if "q_norm" in one or "k_norm" in one]
    stock = tiny_architecture(name, STOCK[name])
    assert bool([one for one, _ in stock.named_parameters() if "q_norm" in one]) == ("qk_norm" in STOCK[name])


class _OtherNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.query(hidden_states), None


def test_an_attention_that_does_not_read_its_projections_is_refused_by_version() -> None:
    with pytest.raises(ImportError, match=rf"transformers {transformers.__version__}.*k_proj, q_proj, v_proj"):
        type("Other", (PlacedAttention, _OtherNames), {})


class _Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = self.k_proj = self.v_proj = nn.Linear(4, 4)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (self.q_proj(hidden_states) if self.training else self.k_proj(hidden_states) + self.v_proj.bias), None


def test_a_projection_that_is_not_called_is_an_error_and_no_norm_left_out() -> None:
    skips: Any = type("Skips", (PlacedAttention, _Skips), {"head_dim": 2})()
    skips.qkv_norm = QKVNormPlan()
    with pytest.raises(RuntimeError, match=rf"did not call k_proj, v_proj.*transformers {transformers.__version__}"):
        skips(torch.zeros(1, 1, 4))


def test_a_forward_behind_decorators_is_looked_into() -> None:
    check_reads(LlamaAttention.forward, PROJECTIONS)
    with pytest.raises(ImportError, match=r"LlamaAttention.forward does not use query_proj"):
        check_reads(LlamaAttention.forward, ["query_proj"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("del transformers.pytorch_utils.Conv1D", "cannot import name 'Conv1D'"),
        ("del transformers.models.llama.modeling_llama.LlamaMLP", "cannot import name 'LlamaMLP'"),
        ("del transformers.PreTrainedModel._init_weights", "PreTrainedModel has no _init_weights"),
    ],
)
def test_a_transformers_that_lacks_an_internal_is_named_with_its_version(change: str, expected: str) -> None:
    code = f"import transformers.models.llama.modeling_llama, transformers.pytorch_utils\n{change}\nimport mixln.models"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: mixln does not work with transformers {transformers.__version__}: ")
    assert expected in last
