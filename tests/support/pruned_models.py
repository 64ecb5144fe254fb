"""Small models of many architectures and tasks, and what a pruned one must be: by transformers alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

_SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2}
_SIX: dict[str, Any] = {**_GROUPED, "num_hidden_layers": 6, "head_dim": 8}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 2,
}
_BOTH_SIDES: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 32,
    **{
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 3), ("attention_heads", 4), ("ffn_dim", 48))
    },
}
_T5: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
_TEXT = torch.randint(5, 55, (2, 9), generator=torch.Generator().manual_seed(4))


@dataclass(frozen=True)
class Case:
    """A model, which of its layers go, and whether that can be.

    Attributes:
        model: transformers' class.
        config: its config's class.
        fields: of the config.
        removed: indices (from 0).
        stack: where the blocks are.
        refused: why it cannot be; None: it can.
        inputs: of the model.
    """

    model: str
    config: str
    fields: dict[str, Any]
    removed: tuple[int, ...]
    stack: str
    refused: str | None = None
    inputs: dict[str, Any] = field(default_factory=lambda: {"input_ids": _TEXT, "use_cache": False})

    def build(self) -> PreTrainedModel:
        """The model, with weights so large that its layers matter."""
        torch.manual_seed(0)
        model = getattr(transformers, self.model)._from_config(getattr(transformers, self.config)(**self.fields))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 0.2 if parameter.ndim > 1 else parameter + noise * 0.1)
        return model.eval()


def bert(model: str, removed: tuple[int, ...] = (1, 2)) -> Case:
    stack = "encoder.layer" if model == "BertModel" else "bert.encoder.layer"
    return Case(model, "BertConfig", _SIZES, removed, stack, inputs={"input_ids": _TEXT})


CASES: dict[str, Case] = {
    "bert": bert("BertModel"),
    "bert classes": bert("BertForSequenceClassification"),
    "bert masked": bert("BertForMaskedLM", (0,)),
    "bert tokens": bert("BertForTokenClassification"),
    "llama classes": Case(
        "LlamaForSequenceClassification", "LlamaConfig", _GROUPED, (1,), "model.layers", inputs={"input_ids": _TEXT}
    ),
    "distilbert": Case(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"vocab_size": 61, "dim": 32, "hidden_dim": 48, "n_layers": 4, "n_heads": 4, "max_position_embeddings": 64},
        (1, 2),
        "distilbert.transformer.layer",
        inputs={"input_ids": _TEXT},
    ),
    "longformer": Case(
        "LongformerForMaskedLM",
        "LongformerConfig",
        {**_SIZES, "attention_window": 4},
        (0, 2),
        "longformer.encoder.layer",
        inputs={"input_ids": _TEXT},
    ),
    "gpt neox japanese": Case(
        "GPTNeoXJapaneseForCausalLM",
        "GPTNeoXJapaneseConfig",
        {**_SIZES, "intermediate_multiple_size": 2},
        (0, 2),
        "gpt_neox_japanese.layers",
    ),
    "gpt neox japanese, its last": Case(
        "GPTNeoXJapaneseForCausalLM",
        "GPTNeoXJapaneseConfig",
        {**_SIZES, "intermediate_multiple_size": 2},
        (3,),
        "gpt_neox_japanese.layers",
        refused="layers.2.attention.dense_bias would be a parameter of 32, and is missing",
    ),
    "xlnet": Case(
        "XLNetLMHeadModel",
        "XLNetConfig",
        {"vocab_size": 61, "d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 48},
        (1,),
        "transformer.layer",
        inputs={"input_ids": _TEXT},
    ),
    "qwen3 moe": Case(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_GROUPED, **_EXPERTS, "head_dim": 8, "mlp_only_layers": [0, 2]},
        (1,),
        "model.layers",
    ),
    "qwen2 windows": Case(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
        (0, 3),
        "model.layers",
    ),
    "bamba": Case(
        "BambaForCausalLM",
        "BambaConfig",
        {**_GROUPED, **_MAMBA, "attn_layer_indices": [1, 3]},
        (0,),
        "model.layers",
    ),
    "jamba": Case(
        "JambaForCausalLM",
        "JambaConfig",
        {
            **{**_GROUPED, "num_hidden_layers": 8},
            **{"attn_layer_period": 4, "attn_layer_offset": 2, "num_experts": 2, "num_experts_per_tok": 1},
            **{"use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4},
        },
        (0,),
        "model.layers",
    ),
    "llama 4": Case(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {
            **{**_GROUPED, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2},
            **{"num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "no_rope_layer_interval": 2},
        },
        (0,),
        "model.layers",
    ),
    "deepseek v3": Case(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **{**_SIZES, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4},
            **{"num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 2, "q_lora_rank": 16},
            **{"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
            **{"n_group": 2, "topk_group": 1},
        },
        (0,),
        "model.layers",
    ),
    **{
        f"zamba 2, {what}": Case(
            "Zamba2ForCausalLM",
            "Zamba2Config",
            {
                **{"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 5, "intermediate_size": 48},
                **{"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "hybrid"], "num_mem_blocks": 1},
                **{"mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 4, "max_position_embeddings": 64},
                **{"num_attention_heads": 4, "num_key_value_heads": 4, "attention_hidden_size": 64},
                **{"attention_head_dim": 16, "adapter_rank": 4, "pad_token_id": 0},
            },
            removed,
            "model.layers",
            refused=refused,
        )
        for what, removed, refused in (("state alone", (0,), None), ("a shared block", (1,), "it does not run"))
    },
    "gemma 3": Case("Gemma3ForCausalLM", "Gemma3TextConfig", {**_SIX, "sliding_window": 4}, (1, 2), "model.layers"),
    "gemma 3n": Case(
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        {
            **{**_SIX, "vocab_size_per_layer_input": 61, "hidden_size_per_layer_input": 4, "num_kv_shared_layers": 2},
            **{"layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 4},
            **{"activation_sparsity_pattern": [0.5] * 2 + [0.0] * 4, "laurel_rank": 4, "altup_num_inputs": 2},
        },
        (0,),
        "model.layers",
    ),
    "modernbert": Case(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {
            **{**_SIZES, "cls_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "bos_token_id": 1},
            **{"global_attn_every_n_layers": 2, "local_attention": 4},
        },
        (1,),
        "model.layers",
        inputs={"input_ids": _TEXT},
    ),
    "t5": Case(
        "T5ForConditionalGeneration",
        "T5Config",
        _T5,
        (1,),
        "encoder.block",
        inputs={"input_ids": _TEXT, "decoder_input_ids": _TEXT[:, :4], "use_cache": False},
    ),
    "t5, its first": Case(
        "T5ForConditionalGeneration",
        "T5Config",
        _T5,
        (0,),
        "decoder.block",
        refused="relative_attention_bias.weight would be a parameter of 32 x 4, and is missing",
    ),
    "bart classes": Case(
        "BartForSequenceClassification",
        "BartConfig",
        {**_BOTH_SIDES, "max_position_embeddings": 64, "pad_token_id": 1, "decoder_start_token_id": 2},
        (1,),
        "model.encoder.layers",
        inputs={"input_ids": torch.cat((_TEXT[:, :-1], torch.full((2, 1), 2)), 1)},
    ),
    "bart decoder": Case(
        "BartForConditionalGeneration",
        "BartConfig",
        {**_BOTH_SIDES, "max_position_embeddings": 64, "pad_token_id": 1, "decoder_start_token_id": 2},
        (1,),
        "model.decoder.layers",
        inputs={"input_ids": _TEXT, "decoder_input_ids": _TEXT[:, :4], "use_cache": False},
    ),
    "vit": Case(
        "ViTForImageClassification", "ViTConfig", _VISION, (1,), "vit.layers", inputs={"pixel_values": _PIXELS}
    ),
    "beit": Case(
        "BeitForImageClassification",
        "BeitConfig",
        {**_VISION, "drop_path_rate": 0.1},
        (0,),
        "beit.layers",
        inputs={"pixel_values": _PIXELS},
    ),
    "convnext": Case(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"image_size": 32, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 3, 1]},
        (1,),
        "convnext.encoder.stages.2.layers",
        inputs={"pixel_values": _PIXELS.repeat(1, 1, 4, 4)},
    ),
    "clip text": Case(
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**_SIZES, "num_hidden_layers": 3, "eos_token_id": 60},
            "vision_config": _VISION,
            "projection_dim": 16,
        },
        (0,),
        "text_model.encoder.layers",
        inputs={"input_ids": _TEXT, "pixel_values": _PIXELS},
    ),
    **{
        f"llava, {stack.split('.')[1]}": Case(
            "LlavaForConditionalGeneration",
            "LlavaConfig",
            {
                "text_config": {**_GROUPED, "model_type": "llama"},
                "vision_config": {**_VISION, "model_type": "clip_vision_model"},
                "image_token_index": 60,
            },
            (1,),
            stack,
            inputs={
                "input_ids": torch.cat([_TEXT, torch.full((2, 16), 60)], dim=1),
                "pixel_values": _PIXELS,
                "use_cache": False,
            },
        )
        for stack in ("model.language_model.layers", "model.vision_tower.encoder.layers")
    },
    "qwen2.5 vl": Case(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {
            "text_config": {**_GROUPED, "rope_scaling": {"type": "default", "mrope_section": [2, 1, 1]}},
            "vision_config": {
                **{"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32},
                **{"fullatt_block_indexes": [1], "patch_size": 2, "window_size": 8},
            },
            **{"image_token_id": 58, "video_token_id": 59, "vision_start_token_id": 56, "vision_end_token_id": 57},
        },
        (0,),
        "model.language_model.layers",
    ),
    "qwen2.5 vl, sight": Case(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {
            "text_config": {**_GROUPED, "rope_scaling": {"type": "default", "mrope_section": [2, 1, 1]}},
            "vision_config": {
                **{"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32},
                **{"fullatt_block_indexes": [1], "patch_size": 2, "window_size": 8},
            },
            **{"image_token_id": 58, "video_token_id": 59, "vision_start_token_id": 56, "vision_end_token_id": 57},
        },
        (0,),
        "model.visual.blocks",
    ),
    "gpt2 divided by depth": Case(
        "GPT2LMHeadModel",
        "GPT2Config",
        {**{"vocab_size": 61, "n_embd": 32, "n_layer": 4, "n_head": 4}, "scale_attn_by_inverse_layer_idx": True},
        (1,),
        "transformer.h",
        refused="sets each layer from its place",
    ),
    "diffllama": Case(
        "DiffLlamaForCausalLM", "DiffLlamaConfig", _GROUPED, (1,), "model.layers", refused="lambda_init would be"
    ),
    "albert": Case(
        "AlbertForMaskedLM",
        "AlbertConfig",
        {**_SIZES, "embedding_size": 16},
        (0,),
        "albert.encoder.albert_layer_groups",
        refused="all 1 layers would be removed",
    ),
}


def without(model: PreTrainedModel, stack: str, removed: Sequence[int]) -> PreTrainedModel:
    """A copy of a model in which some blocks hand on what they are given; no number and no config changes."""
    changed = copy.deepcopy(model)
    blocks: Any = changed.get_submodule(stack)
    for index in removed:
        blocks[index].forward = _skipping(blocks[index].forward)
    return changed


def _skipping(compute: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        output = compute(*args, **kwargs)
        return (given, *output[1:]) if isinstance(output, tuple) else given

    return forward


def first_output(model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    """The logits or the last hidden states."""
    call: Callable[..., Any] = model
    with torch.no_grad():
        output = call(**inputs)
    named = (getattr(output, name, None) for name in ("logits", "logits_per_image", "last_hidden_state"))
    return next(found for found in named if found is not None)
