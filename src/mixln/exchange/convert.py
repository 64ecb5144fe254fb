"""Reading checkpoints in the layout of the published Mix-LN and LayerNorm Scaling training code.

That layout is Llama's, with a config.json that does not say how the norms are placed: the scheme was an environment
variable of the training script. So the user states it, and every parameter is checked against it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from mixln.errors import InputError
from mixln.exchange.published import rename_published_gates
from mixln.models.architectures.llama import MixLNLlamaConfig, MixLNLlamaForCausalLM
from mixln.models.weight_files import read_tensors
from mixln.placement import Placement, PlacementError
from mixln.quiet import quiet_transformers
from mixln.records import read_json
from mixln.storage import disk_errors, require_new_folder, whole_folder

_ROTARY_SUFFIX = "rotary_emb.inv_freq"
_LAYER_NORM = re.compile(r"model\.layers\.\d+\..*norm\..*")

_CONFIG_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)


def convert_published(source: str | Path, placement: str) -> MixLNLlamaForCausalLM:
    """Return the model of a published-code checkpoint folder, in the dtype its weights have.

    Args:
        source: folder with config.json and model.safetensors, pytorch_model.bin, or shards of either with their index.
        placement: text form of the placement it was trained with, for example `mix(post_layers=2)`.

    Raises:
        PlacementError: there is no such placement.
        InputError: a file is missing or damaged, a parameter of the placement is missing, left over or of the wrong
            shape (all are listed), or a stored rotary frequency does not agree with the config's theta.
    """
    source = Path(source)
    Placement.parse(placement)
    fields = _read_fields(source)
    state = read_tensors(source)
    if not state:
        raise InputError(f"{source} has neither model.safetensors nor pytorch_model.bin")
    _check_depth(fields["num_hidden_layers"], state, source)
    config = _config(fields, source, placement)
    _check_and_drop_rotary(state, config)
    try:
        with torch.device("meta"):
            model = MixLNLlamaForCausalLM(config)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{source / 'config.json'} describes no Llama: {error}") from error
    expected = dict(model.named_parameters())
    rename_published_gates(state, expected.keys())
    _check_parameters(state, expected, source, config)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    config.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    # the parameters alone: the rotary frequencies stay in float32, as transformers keeps them
    for parameter in model.parameters():
        parameter.data = parameter.data.to(config.dtype)
    model.to_empty(device="cpu")
    # fills the buffers too, which the checkpoint does not bring
    model.initialize(seed=0)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model.eval()


def _read_fields(source: Path) -> dict[str, Any]:
    """Return what the config.json of a published-code checkpoint says.

    Raises:
        InputError: there is no readable config.json, or it is not of a Llama.
    """
    path = source / "config.json"
    if not source.is_dir():
        raise InputError(f"{source} is not a folder. Give the folder with config.json and the weights")
    if not path.is_file():
        raise InputError(f"{path} does not exist. A checkpoint folder has a config.json beside its weights")
    try:
        found: Any = read_json(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} does not hold a JSON object")
    if found.get("model_type", "llama") != "llama":
        kind = found["model_type"]
        hint = ", which this library wrote itself: it needs no conversion" if str(kind).startswith("mixln_") else ""
        raise InputError(f"{path} is of model_type {kind!r}{hint}. The published training code writes 'llama'")
    if found.get("rope_scaling"):
        raise InputError(
            f"{path} has rope_scaling, which the published training code does not know: remove it if unused"
        )
    missing = [name for name in _CONFIG_FIELDS[:5] if name not in found]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    return found


def _check_depth(num_layers: object, state: Mapping[str, torch.Tensor], source: Path) -> None:
    """Refuse more layers than there are tensors: before a model is built that may have millions of them."""
    if isinstance(num_layers, int) and num_layers > len(state):
        raise InputError(
            f"{source / 'config.json'} says num_hidden_layers {num_layers}, but there are only {len(state)} "
            "weight tensors: correct it, or copy the missing weights"
        )


def _config(found: Mapping[str, Any], source: Path, placement: str) -> MixLNLlamaConfig:
    """Return the config of a published-code checkpoint as this library's, with the placement that the user states.

    Raises:
        InputError: its sizes do not fit together.
    """
    path = source / "config.json"
    fields = {name: found[name] for name in _CONFIG_FIELDS if name in found}
    length = found.get("max_sequence_length", found.get("max_position_embeddings", 2048))
    pad_token_id = found.get("pad_token_id")
    try:
        config = MixLNLlamaConfig(
            **fields,
            placement=placement,
            max_position_embeddings=length,
            rope_parameters={"rope_type": "default", "rope_theta": float(found.get("rope_theta", 10000.0))},
            # the published configs say -1 for "none"
            pad_token_id=pad_token_id if pad_token_id is not None and pad_token_id >= 0 else None,
        )
    except PlacementError:
        raise
    except (StrictDataclassError, ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"{path}: {error.__cause__ or error}") from error
    if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
        raise InputError(
            f"{path}: pad_token_id {config.pad_token_id} is outside of the vocabulary of {config.vocab_size}: correct "
            "it, or write -1 for none"
        )
    return config


def _check_and_drop_rotary(state: dict[str, torch.Tensor], config: MixLNLlamaConfig) -> None:
    """Remove the rotary frequencies that the published code saves with the weights, once they agree with the config."""
    assert config.head_dim is not None
    assert isinstance(config.rope_parameters, Mapping)
    theta = config.rope_parameters.get("rope_theta")
    assert theta is not None
    expected = theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    for name in [name for name in state if name.endswith(_ROTARY_SUFFIX)]:
        stored = state.pop(name).double()
        # bfloat16 checkpoints hold them with 8 bits of precision
        if stored.shape != expected.shape or not torch.allclose(stored, expected, rtol=1e-2, atol=0):
            raise InputError(
                f"{name} does not agree with rope_theta={theta:g} and head size {config.head_dim} of the config: "
                "correct rope_theta in config.json"
            )


def _check_parameters(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], source: Path, config: MixLNLlamaConfig
) -> None:
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    faults = {
        "missing": sorted(expected.keys() - state.keys()),
        "left over": sorted(state.keys() - expected.keys() - tied),
        "of the wrong shape": sorted(
            f"{name} is {tuple(state[name].shape)}, should be {tuple(parameter.shape)}"
            for name, parameter in expected.items()
            if name in state and state[name].shape != parameter.shape
        ),
    }
    if any(faults.values()):
        lists = "; ".join(f"{what} ({len(names)}): {', '.join(names)}" for what, names in faults.items() if names)
        remedy = "If the sizes in config.json are right, state another `placement`, or `norm_type` and `post_num`"
        # only norms of layers are missing, and all of them
        missing = faults["missing"]
        if missing and all(map(_LAYER_NORM.fullmatch, missing)) and not any(map(_LAYER_NORM.fullmatch, state)):
            remedy = (
                "None of its layers has a norm. One commit of the published LayerNorm Scaling code builds such layers "
                "for NORM_TYPE=LNS, by mistake: they return their input, and there is nothing in them to convert"
            )
        raise InputError(f"{source} does not fit placement {config.placement!r}. Parameters {lists}. {remedy}")


_COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "spiece.model",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
    "preprocessor_config.json",
)


def save_converted(source: str | Path, out: str | Path, placement: str) -> MixLNLlamaForCausalLM:
    """Convert a published-code checkpoint and write it to `out`, whole or not at all; tokenizer files come along.

    Raises:
        PlacementError, InputError: as `convert_published`; or `out` holds something already, or cannot be written.
    """
    source, out = Path(source), Path(out)
    require_new_folder(out)
    model = convert_published(source, placement)
    saving = disk_errors(f"{out} could not be written", "Make room, or choose another place")
    with saving, quiet_transformers(), whole_folder(out) as temporary:
        model.save_pretrained(temporary)
        copy_companions(source, temporary)
    return model


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the files beside a model that stay true after a conversion."""
    for pattern in _COMPANIONS:
        for file in source.glob(pattern):
            shutil.copy2(file, folder / file.name)
