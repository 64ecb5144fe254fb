"""Opening a checkpoint folder or hub name, with errors that a user can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mixln.errors import InputError

_UNUSABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What transformers raises, depending on what is wrong with a folder's files."""


def load_causal_lm(name_or_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the language model and tokenizer of a Hugging Face folder or hub name, the model in evaluation mode.

    Code that a checkpoint brings along is never run.

    Raises:
        InputError: there is no such checkpoint, or it is damaged, incomplete, or no causal language model.
    """
    return _load(name_or_path, AutoModelForCausalLM, "a causal language model", {})


def load_bare_causal_lm(name_or_path: str) -> PreTrainedModel:
    """Return the language model of a Hugging Face folder or hub name, in evaluation mode; it may have no tokenizer.

    Raises:
        InputError: as `load_causal_lm`.
    """
    return _load_bare(name_or_path, AutoModelForCausalLM, "a causal language model", {})


def load_model(
    name_or_path: str, *, dtype: str = "auto", device: torch.device | None = None, device_map: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return any model and its tokenizer: with its head if it is a causal language model, else the base model.

    Code that a checkpoint brings along is never run.

    Args:
        name_or_path: Hugging Face folder, or name on the hub.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: what the checkpoint is in.
        device: to put it on; not with a device_map.
        device_map: as in transformers (`auto` shares a large model out over what devices there are); None: one device.

    Raises:
        InputError: there is no such checkpoint, or it is damaged or incomplete, or accelerate is needed and missing.
    """
    config = load_config(name_or_path)
    is_causal = any(name.endswith(CAUSAL_CLASSES) for name in config.architectures or [])
    if device_map is not None and device_map not in _DEVICE_MAPS:
        raise InputError(f"there is no --device-map {device_map}. There are: {', '.join(_DEVICE_MAPS)}")
    options = {"dtype": dtype, **({} if device_map is None else {"device_map": device_map})}
    model, tokenizer = _load(name_or_path, AutoModelForCausalLM if is_causal else AutoModel, "a model", options)
    if device is not None and device_map is None:
        torch.nn.Module.to(model, device)
    return model, tokenizer


_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential", "cpu", "cuda")

CAUSAL_CLASSES = ("ForCausalLM", "LMHeadModel")
"""How the names of classes end that predict the next token."""


def is_causal_language_model(model: torch.nn.Module) -> bool:
    """Whether a Hugging Face model predicts the next token: its class ends in `ForCausalLM` or `LMHeadModel`."""
    return type(model).__name__.endswith(CAUSAL_CLASSES)


def _load(
    name_or_path: str, auto_class: Any, what: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return _load_bare(name_or_path, auto_class, what, options), load_tokenizer(name_or_path)


def _load_bare(name_or_path: str, auto_class: Any, what: str, options: dict[str, Any]) -> PreTrainedModel:
    _check_path(name_or_path)
    try:
        model = auto_class.from_pretrained(name_or_path, **options)
    except ImportError as error:
        raise InputError(
            f"{name_or_path} needs a package that is not installed: {str(error).splitlines()[0]}"
        ) from error
    except (*_UNUSABLE, StrictDataclassError, SafetensorError) as error:
        raise InputError(_cannot_open(name_or_path, what, error)) from error
    return model.eval()


def load_config(name_or_path: str) -> PreTrainedConfig:
    """Return the config of a model.

    Raises:
        InputError: there is no such model, or its config is damaged.
    """
    _check_path(name_or_path)
    try:
        return AutoConfig.from_pretrained(name_or_path)
    except (*_UNUSABLE, StrictDataclassError) as error:
        raise InputError(_cannot_open(name_or_path, "a model", error)) from error


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model.

    Raises:
        InputError: there is no such model, or none that can be opened with it.
    """
    _check_path(name_or_path)
    try:
        return AutoTokenizer.from_pretrained(name_or_path)
    except (*_UNUSABLE, ImportError) as error:
        raise InputError(
            f"{name_or_path} has no tokenizer that can be opened ({type(error).__name__}: {_first_line(error)}). Save "
            "the model's beside it, with tokenizer.save_pretrained"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["without a reason"])[0].rstrip(".")


def _check_path(name_or_path: str) -> None:
    path = Path(name_or_path)
    # a name on the hub is OWNER/NAME or NAME
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2 or name_or_path.startswith(".")):
        raise InputError(f"there is no folder {path}. Give one that save_pretrained wrote, or a name on the hub")
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{path} has no config.json: give the folder that holds the model itself (in a run: model/)")
    if path.is_file():
        raise InputError(f"{path} is a file: give the folder that holds config.json and the weights")


def _cannot_open(name_or_path: str, what: str, error: BaseException) -> str:
    # a strict config names its field first, and says what is wrong with it in the cause
    cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    reason = f"{type(cause).__name__}: {_first_line(cause)}"
    return (
        f"{name_or_path} cannot be opened as {what}: {reason}. Give a folder that save_pretrained wrote, or the name "
        "of a model on the Hugging Face hub"
    )
