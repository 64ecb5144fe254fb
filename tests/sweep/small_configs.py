"""Small configs of every architecture in transformers, made from the names of a config's fields.

There is no list of architectures: a field is shrunk by what its name says it is (a width, a number of layers, of heads,
of experts ...), in the config and in the configs inside it, so that widths that must agree still do. Fields that the
config computes from others are left to it. What that does not settle is in `OVERRIDES`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY = 300
LAYERS = 4
WIDTH = 32
HEADS = 4
HEAD_DIM = 8
POSITIONS = 64
WINDOW = 8
"""Of sliding attention: shorter than the rows, so that it matters."""
IMAGE = 32
PATCH = 8

_TOKEN = re.compile(r"(token_id|token_index|token_ids|eos_token|_tok_id|_token)$|^(unk|mask|pad|bos|eos)_index$")
_BY_NAME: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), value)
    for pattern, value in (
        # numbers of layers
        (
            r"^(num_hidden_layers|n_layers?|num_layers|(num_)?(encoder|decoder)_layers|depth|num_encoder_blocks)$",
            LAYERS,
        ),
        (r"^num_(hidden_)?layers_|_num_layers$|_depth$|_num_hidden_layers$|^(r|x|l)_layers$|_layers_num$", 2),
        (r"^num_kv_shared_layers$", 2),
        (r"^(first_k_dense_replace|num_dense_layers|num_hash_layers)$", 1),
        (r"^(full_attention_interval|attn_layer_period|expert_layer_period|decoder_sparse_step)$", 2),
        (r"^(global_attn_every_n_layers|sliding_window_pattern|_sliding_window_pattern|no_rope_layer_interval)$", 2),
        (r"^(encoder_sparse_step|cross_layer_interval|layer_group_size|interleave_moe_layer_step)$", 2),
        (r"^(attn_layer_offset|expert_layer_offset|n_layers_per_attn_res_block)$", 1),
        (r"^max_window_layers$", 2),
        # heads
        (r"^(num_key_value_heads|num_kv_heads|.*_num_key_value_heads|swa_num_key_value_heads|num_query_groups)$", 2),
        (r"^(num_global_key_value_heads|num_key_value_attention_heads)$", 2),
        (r"^(linear_num_key_heads)$", 2),
        (r"^(n_mamba_heads|mamba_n_heads|mamba_num_heads)$", 8),
        (r"^(mamba_d_head|mamba_head_dim|mamba_headdim)$", HEAD_DIM),
        (r"^(mamba_d_ssm)$", 2 * WIDTH),
        (r"^(index_n_heads|resampler_n_heads|self_attn_heads)$", 2),
        (r"(^|_)(attention_|attn_)?heads?$|^n_heads?$|^num_heads$", HEADS),
        (r"^(rotary_dim)$", 4),
        (r"(head_dim|head_size|d_kv|d_head|kv_channels|dim_head|qk_head_dim|attention_head_dim)$", HEAD_DIM),
        (r"(lora_rank|_rank|lowrank|adapter_rank)$", 4),
        # experts
        (r"^(num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts|zero_expert_num)$", 4),
        (r"^(num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|top_k|num_experts_per_token|num_selected_experts)$", 2),
        (r"^(n_group|topk_group|num_expert_group|n_groups_moe|limited_groups)$", 1),
        (r"^(expert_capacity)$", 64),
        # states of recurrent layers
        (r"^(mamba_d_state|state_size|ssm_state_size|mamba_state_size)$", 8),
        (r"^(mamba_n_groups|mamba_ngroups|n_groups)$", 2),
        (r"^(time_step_rank|mamba_dt_rank|dt_rank)$", 4),
        (r"chunk_size(_linear)?$|^mamba_chunk_size$", 8),
        # positions and windows
        (
            r"^(sliding_window|sliding_window_size|attention_window_size|attention_window|local_attention|window_size)$",
            WINDOW,
        ),
        (r"^(attention_chunk_size)$", WINDOW),
        (r"^(max_.*position.*|n_positions|n_ctx|context_length|model_max_length|max_seq_len|seq_length)$", POSITIONS),
        (r"^(rel_extent)$", 32),
        (r"^(index_topk)$", POSITIONS // 2),  # all: of many equal scores, which are taken depends on the padding
        # vocabularies
        (r"^(vocab_size|.*_vocab_size|vocab_size_.*|codebook_size|unpadded_vocab_size|num_embeddings)$", VOCABULARY),
        (r"^type_vocab_size$", 2),
        # images
        (r"^(image_size|img_size|pretrain_image_size|crop_size)$", IMAGE),
        (r"^(patch_size)$", PATCH),
        (r"^(num_frames)$", 4),
        (r"^(num_groups)$", 4),
        # widths
        (
            r"(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|d_inner|mlp_dim|dim_ff|dim_feedforward|feed_forward_size)",
            48,
        ),
        (r"(expert_dim|intermediate_dim|shared_experts?_intermediate_size|intermediate_size_mlp)$", 48),
        (r"^(hidden_size|.*hidden_size|d_model|n_embd|dim|dim_model|emb_dim|.*embed_dim|.*embedding_size)$", WIDTH),
        (r"^(.*projection_dim|.*hidden_dim|embedding_dim|embed_dims?|.*output_dim|lru_width|project_dim)$", WIDTH),
        (r"^(.*_input_size|.*in_dim|.*_out_dim|.*embeds_hidden_size|pooler_output_size|projection_size)$", WIDTH),
        (r"^(output_channels|.*_channels_dim|attention_hidden_size|projector_input_dim|hidden_size_global)$", WIDTH),
        (r"^(hidden_size_per_layer_input|text_dim|vision_dim|audio_dim|laurel_rank)$", 8),
    )
]

_WHERE_NONE = {
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "n_group": 1,
    "topk_group": 1,
    "top_k": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "sliding_window": WINDOW,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD_DIM,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
"""Some configs leave out what their models need."""

OVERRIDES: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "cohere_compass": {"layer_types": ["sliding_attention", "full_attention"] * 2, "rope_parameters": None},
    "reformer": {"axial_pos_embds_dim": (8, 24), "axial_pos_shape": (8, 8), "attention_head_size": 8, "num_hashes": 1},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "phi4_multimodal_audio": {
        "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32,
        "nemo_conv_channels": 32,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": WIDTH, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": WIDTH},
    },
    "glm5_next_text": {"index_topk": POSITIONS // 2, "index_kpool": 2},
    "swin": {"image_size": 64, "window_size": 2},
    "donut-swin": {"image_size": 64, "window_size": 2},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 0},
    "blt": {"encoder_hash_byte_group_vocab": VOCABULARY},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
}
"""By the type of the config: fields where the rules do not do."""


def small_config(
    config_class: type[PreTrainedConfig], *, fill: bool = False, fields: dict[str, Any] | None = None
) -> PreTrainedConfig:
    """A config of a model with few and narrow layers.

    Args:
        config_class: transformers' own.
        fill: whether to set what the config leaves out as well: some leave out what their models need.
        fields: to set besides.

    Raises:
        Exception: whatever the config says of the sizes.
    """
    return _shrunk(config_class(), layers=LAYERS, fill=fill, fields=fields or {})


def _shrunk(config: PreTrainedConfig, *, layers: int, fill: bool, fields: dict[str, Any]) -> PreTrainedConfig:
    given = field_names(type(config))
    depth = _depth(config)
    small: dict[str, Any] = {}
    for name in dict.fromkeys([*given, *vars(config)]):
        try:
            value = getattr(config, name, None)
        except Exception:  # differs from layer to layer
            continue
        if isinstance(value, PreTrainedConfig):
            main = value is config.get_text_config() or not hasattr(config, "vision_config")
            small[name] = _shrunk(value, layers=LAYERS if main else 2, fill=fill, fields={})
        elif name in given:
            if value is None and fill:
                small[name] = _WHERE_NONE.get(name)
                continue
            new = _small_value(name, value, depth, layers, from_default=given[name] is not None)
            if new is not _LEFT:
                small[name] = new
    own = vars(config)
    if "num_key_value_heads" in small and own["num_key_value_heads"] == own.get("num_attention_heads"):
        small["num_key_value_heads"] = HEADS
    for name in ("num_experts", "n_routed_experts", "num_local_experts"):
        if isinstance(small.get(name), int):
            small[name] = min(4, small[name])
    if "num_kv_shared_layers" in given:
        small["num_kv_shared_layers"] = 2
    rope = own.get("rope_parameters")
    if (
        isinstance(rope, dict)
        and "rope_theta" in rope
        and "mrope_section" in ({*getattr(config, "ignore_keys_at_rope_validation", ()), *rope})
    ):
        small["rope_parameters"] = {**rope, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    small.update(OVERRIDES.get(config.model_type, {}))
    small.update(fields)
    return type(config)(**small)


_LEFT = object()


def field_names(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The names that a config is made of, and their defaults."""
    if dataclasses.is_dataclass(config_class):
        return {
            field.name: field.default if field.default is not dataclasses.MISSING else ()
            for field in dataclasses.fields(config_class)
        }
    parameters = inspect.signature(config_class.__init__).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in ("self", "kwargs")}


def _depth(config: PreTrainedConfig) -> int | None:
    for name in ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers", "depth"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def _small_value(name: str, value: Any, depth: int | None, layers: int, *, from_default: bool) -> Any:
    if value is None or isinstance(value, (bool, float, str)):
        return _LEFT
    if _TOKEN.search(name):
        return _small_token(name, value)
    if isinstance(value, (list, tuple)) and depth and len(value) == depth and depth > layers:
        if not from_default and len(set(map(str, value))) == 1:
            return _LEFT
        entries = [_small_value(name, entry, None, layers, from_default=True) for entry in value]
        entries = [old if new is _LEFT else new for old, new in zip(value, entries, strict=True)]
        return type(value)(_resampled(entries, layers))
    if isinstance(value, int):
        if not from_default:
            return _LEFT
        for pattern, small in _BY_NAME:
            if pattern.search(name):
                if pattern in (_BY_NAME[0][0], _BY_NAME[1][0]):
                    return min(small, layers) if value > 0 else value
                if small == VOCABULARY:
                    return VOCABULARY if value > 0 else value
                return min(small, value) if value >= 0 else value
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, int) for item in value):
        return _small_list(name, value)
    return _LEFT


def _resampled(values: list[Any], length: int) -> list[Any]:
    """As many entries, each kind in turn."""
    kinds = list({str(value): value for value in values}.values())
    return [kinds[index % len(kinds)] for index in range(length)]


def _small_token(name: str, value: Any) -> Any:
    if isinstance(value, int) and value >= VOCABULARY:
        return 20 + sum(map(ord, name)) % (VOCABULARY - 40)
    if isinstance(value, (list, tuple)):
        return type(value)(item if not isinstance(item, int) or item < VOCABULARY else 3 for item in value)
    return _LEFT


def _small_list(name: str, value: Any) -> Any:
    if re.search(r"heads|groups", name):
        return type(value)([1] * len(value))
    if re.search(r"depths|num_layers|block_repeats|blocks", name):
        return type(value)(min(item, 2) for item in value)
    if re.search(r"image_size|img_size", name):
        return type(value)([IMAGE] * len(value))
    if re.fullmatch(r"patch_size", name) and len(value) == 2:
        return type(value)([PATCH] * len(value))
    if re.search(r"hidden_sizes|embed_dim|channels|dims$|widths", name) and max(value) > 16:
        return type(value)(item if item <= 3 else max(8, item // 8 // 8 * 8) for item in value)
    return _LEFT
