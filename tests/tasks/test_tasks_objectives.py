"""The loss of packed documents is what each has alone, whatever the architecture makes of rows; or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from tiny import loss_of_packed_tokens, save_tiny_llama
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.studies.work_folder import row_length
from mixln.tasks import FineTuning, Recipe, validation_loss
from mixln.tasks.choice import choose_objective
from mixln.tasks.objectives import DocumentRowsObjective
from mixln.training import train

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED: dict[str, Any] = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}

# what packed rows cannot be kept apart in: positions that follow from the mask, states, masks of their own
OWN_ROWS: dict[str, Callable[..., PreTrainedConfig]] = {
    "bloom": lambda **sizes: hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **sizes),
    "falcon with ALiBi": lambda **sizes: hf.FalconConfig(**SIZES, alibi=True, **sizes),
    "mamba": lambda **sizes: hf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **sizes),
    "llama4": lambda **sizes: hf.Llama4TextConfig(
        **GROUPED, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=16, **sizes
    ),
    "gemma3": lambda **sizes: hf.Gemma3TextConfig(**GROUPED, sliding_window=16, **sizes),
    "roberta": lambda **sizes: hf.RobertaConfig(
        **SIZES, intermediate_size=48, is_decoder=True, max_position_embeddings=66, pad_token_id=1, **sizes
    ),
    "openai-gpt": lambda **sizes: hf.OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=4, **sizes),
}
PACKED: dict[str, Callable[..., PreTrainedConfig]] = {
    "falcon": lambda **sizes: hf.FalconConfig(**SIZES, **sizes),
    "opt": lambda **sizes: hf.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, **sizes),
    "ctrl": lambda **sizes: hf.CTRLConfig(n_embd=32, n_layer=2, n_head=4, dff=48, n_positions=64, **sizes),
}


def build(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 4  # weights so large that what is seen matters
    return model


@pytest.mark.parametrize("name", [*OWN_ROWS, *PACKED])
def test_the_loss_is_that_of_documents_alone(name: str, recipe: Recipe, data: PreparedData) -> None:
    model = build((OWN_ROWS | PACKED)[name](vocab_size=len(data.tokenizer)))
    length = recipe.data.sequence_length
    if name != "ctrl":  # that of transformers 5.10 does not take positions of several rows
        assert (choose_objective(model, length) is DocumentRowsObjective) is (name in OWN_ROWS)
    store = data.validation.store
    ends = store.document_ends.tolist()
    documents = [store.tokens[start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)]
    total, predicted = loss_of_packed_tokens(model, documents, length)
    found = validation_loss(model, data, 4)
    assert found.num_tokens == predicted
    assert found.mean == pytest.approx(total / predicted, rel=1e-5)


@pytest.mark.parametrize("name", ["bloom", "mamba", "roberta"])
def test_what_cannot_be_packed_is_healed_a_document_a_row(
    name: str, recipe: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    build(OWN_ROWS[name](vocab_size=len(data.tokenizer))).save_pretrained(source)
    data.tokenizer.save_pretrained(source)
    short = replace(recipe, steps=3)
    before = validation_loss(AutoModelForCausalLM.from_pretrained(source), data, 4)
    assert train(FineTuning(source, short, data), tmp_path / "run").validation.mean < before.mean


def test_a_model_that_sees_the_whole_text_is_refused(data: PreparedData) -> None:
    config = hf.XLNetConfig(vocab_size=len(data.tokenizer), d_model=32, n_layer=2, n_head=4, d_inner=48)
    with pytest.raises(InputError, match="XLNetLMHeadModel sees the whole text, also the token to predict"):
        choose_objective(build(config), 64)


def test_rows_that_are_too_long_are_one_line(data: PreparedData) -> None:
    model = build(hf.GPT2Config(vocab_size=len(data.tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=16))
    with pytest.raises(InputError, match="takes no rows of 64 tokens: lower the sequence length to 16") as raised:
        choose_objective(model, 64)
    assert "\n" not in str(raised.value)


def test_rows_are_as_long_as_the_table_of_positions(data: PreparedData, tmp_path: Path) -> None:
    """RoBERTa's positions begin behind that of padding: of 66, 64 are left."""
    build(OWN_ROWS["roberta"](vocab_size=len(data.tokenizer))).save_pretrained(tmp_path)
    data.tokenizer.save_pretrained(tmp_path)
    assert row_length(str(tmp_path), None) == 64
    with pytest.raises(InputError, match="sequence_length may be at most 64"):
        row_length(str(tmp_path), 65)


@pytest.mark.parametrize("used", [False, True])
def test_a_tokenizer_with_a_token_too_many(used: bool, recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    size = len(data.tokenizer)
    source = save_tiny_llama(tmp_path / "source", data.tokenizer, 2, vocab_size=size if not used else size - 1)
    tokenizer = hf.AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(source)
    larger = replace(data, tokenizer=tokenizer)
    short = replace(recipe, steps=1)
    if not used:
        assert train(FineTuning(source, short, larger), tmp_path / "run").validation.num_tokens
        return
    assert data.largest_token == size - 1
    for run in (
        lambda: train(FineTuning(source, short, larger), tmp_path / "run"),
        lambda: validation_loss(AutoModelForCausalLM.from_pretrained(source), larger, 4),
    ):
        with pytest.raises(
            InputError, match=rf"token {size - 1} .* embeddings for {size - 1} tokens, and its tokenizer {size + 1}"
        ):
            run()


def test_every_weight_and_buffer_keeps_its_precision(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    """DeepSeek-V3 keeps its router's weight and bias in float32, whatever the rest is in."""
    config = hf.DeepseekV3Config(
        **SIZES, vocab_size=len(data.tokenizer), intermediate_size=48, moe_intermediate_size=16,
        num_key_value_heads=4, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2,
        first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    model = build(config)
    torch.nn.Module.to(model, torch.bfloat16)
    bias = next(buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))
    bias.data = torch.tensor([0.1, 0.2, 0.3, 1 / 3])
    model.save_pretrained(tmp_path / "source")
    data.tokenizer.save_pretrained(tmp_path / "source")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    dtypes = {name: tensor.dtype for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()]}
    assert {torch.float32, torch.bfloat16} <= set(dtypes.values())
    task = FineTuning(tmp_path / "source", recipe, data)
    trained = task.build()
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
    task.finish(task.objective(trained, torch.device("cpu"), compiled=False))
    assert {name: t.dtype for name, t in [*trained.named_parameters(), *trained.named_buffers()]} == dtypes
    train(FineTuning(tmp_path / "source", replace(recipe, steps=1), data), tmp_path / "run")
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert torch.equal(saved[name], bias.data)
    assert saved["model.layers.1.self_attn.o_proj.weight"].dtype == torch.bfloat16
