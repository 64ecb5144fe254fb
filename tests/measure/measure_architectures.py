"""Small models of many architectures, built from their configs, with weights so large that their layers matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import mixln
from mixln.measure.batches import ModelBatch

VOCABULARY = 61
NUM_LAYERS = 4

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Architecture:
    """How to build a small model.

    Attributes:
        model: transformers' class.
        config: its config's class.
        fields: of the config.
        stack: where its blocks are.
    """

    model: str
    config: str
    fields: dict[str, Any]
    stack: str

    def build(self) -> PreTrainedModel:
        config = getattr(transformers, self.config)(**self.fields)
        eager = {"experts_implementation": "eager"}  # grouped products know no float64
        return _grown(getattr(transformers, self.model)._from_config(config, **eager))


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", "LlamaConfig", _GROUPED, "model.layers"),
    "qwen2": Architecture("Qwen2ForCausalLM", "Qwen2Config", _GROUPED, "model.layers"),
    "qwen3": Architecture("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 8}, "model.layers"),
    "mistral": Architecture("MistralForCausalLM", "MistralConfig", _GROUPED, "model.layers"),
    "gemma2": Architecture("Gemma2ForCausalLM", "Gemma2Config", {**_GROUPED, "head_dim": 8}, "model.layers"),
    "olmo": Architecture("OlmoForCausalLM", "OlmoConfig", _GROUPED, "model.layers"),
    "olmo2": Architecture("Olmo2ForCausalLM", "Olmo2Config", _GROUPED, "model.layers"),
    "phi3": Architecture(
        "Phi3ForCausalLM", "Phi3Config", {**_GROUPED, "eos_token_id": 1, "bos_token_id": 1}, "model.layers"
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": NUM_LAYERS, "n_head": 4, "n_positions": 64},
        "transformer.h",
    ),
    "gpt_neox": Architecture("GPTNeoXForCausalLM", "GPTNeoXConfig", _SIZES, "gpt_neox.layers"),
    "opt": Architecture(
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            "pad_token_id": 0,
        },
        "model.decoder.layers",
    ),
    "mixtral": Architecture(
        "MixtralForCausalLM", "MixtralConfig", {**_GROUPED, "num_local_experts": 4}, "model.layers"
    ),
    "bert": Architecture("BertModel", "BertConfig", _SIZES, "encoder.layer"),
    "roberta": Architecture("RobertaModel", "RobertaConfig", _SIZES, "encoder.layer"),
    "mpnet": Architecture("MPNetModel", "MPNetConfig", _SIZES, "encoder.layer"),
    "vit": Architecture(
        "ViTModel",
        "ViTConfig",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": 4,
            "image_size": 8,
            "patch_size": 2,
        },
        "layers",
    ),
}


def build_placed(placement: str, vocab_size: int = VOCABULARY) -> PreTrainedModel:
    sizes = {**_GROUPED, "vocab_size": vocab_size}
    config = mixln.MixLNLlamaConfig(**sizes, placement=placement, tie_word_embeddings=False)
    return _grown(mixln.MixLNLlamaForCausalLM(config).initialize(0))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    **{name: architecture.build for name, architecture in ARCHITECTURES.items()},
    **{f"mixln {scheme}": lambda scheme=scheme: build_placed(scheme) for scheme in mixln.schemes()},
}
"""Every architecture, and every placement that this library trains."""


def _grown(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.2 if parameter.ndim > 1 else 0.1
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model.double().eval()


def is_decoder(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def make_batch(model: PreTrainedModel, rows: int = 5) -> ModelBatch:
    """Rows of three documents; of unequal lengths, unless they are images."""
    generator = torch.Generator().manual_seed(2)
    documents = torch.tensor([0, 0, 1, 2, 2, 1])[:rows]
    if model.main_input_name == "pixel_values":
        pixels = torch.randn(rows, 3, 8, 8, generator=generator, dtype=torch.float64)
        return ModelBatch({"pixel_values": pixels}, None, None, documents)
    length = 12
    input_ids = torch.randint(2, VOCABULARY, (rows, length), generator=generator)
    lengths = torch.tensor([12, 7, 9, 12, 5, 8])[:rows, None]
    mask = torch.arange(length) < lengths
    input_ids = torch.where(mask, input_ids, 0)
    arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask.long()}
    if not is_decoder(model):
        return ModelBatch(arguments, mask, None, documents)
    targets = torch.where(mask, input_ids, -100).roll(-1, 1)
    targets[:, -1] = -100
    arguments |= {"position_ids": (mask.long().cumsum(1) - 1).clamp_min(0), "use_cache": False}
    return ModelBatch(arguments, targets != -100, targets, documents)
