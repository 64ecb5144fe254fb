"""What this library uses of transformers that is not public, or has changed its name: look here when it changes.

| what | for |
| --- | --- |
| attention, MLP, norm and rotary classes of an architecture, by their names (`stock_part`) | parts of placed blocks |
| `forward` of an attention reads its projections as attributes | norms behind them (`attention.py`) |
| `GPT2Model` calls its blocks with positional arguments that its attention takes in the same order | `gpt2.py` |
| `GradientCheckpointingLayer`, `Conv1D` | blocks; linear layers of GPT-2 |
| `PreTrainedModel._init_weights`, `_from_config`, `_no_split_modules`, `_can_record_outputs` | building, initialising |
| the mark `_is_hf_initialized` on what is loaded | initialisation that passes over it (`placed.py`) |
| `gradient_checkpointing_enable`, later `activation_checkpointing_enable` | activation checkpointing |
| embeddings of encoders end in `dropout`, blocks are called with (states, mask) | `encoder.py` |
| `_model_mapping` of an Auto class | two classes of one config and one Auto class |
| `CONFIG_MAPPING._extra_content`, what is registered with `AutoConfig` | model types on demand (`mixln.auto_classes`) |
| the package that code from a checkpoint's folder is imported into | saving such a model (`stock_refusal.py`) |

A name that is gone fails here, at import; `check_internals` and `auto_classes` look at the rest. The errors name the
version. What a name does is held by the tests, which run with the oldest and the newest supported release.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer as GradientCheckpointingLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP as GPT2MLP
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention as GPT2Attention
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm as OlmoLayerNorm
from transformers.pytorch_utils import Conv1D as Conv1D
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME as TRANSFORMERS_DYNAMIC_MODULE_NAME

from mixln.errors import unsupported_transformers

LOADED_MARK = "_is_hf_initialized"
"""The attribute of a tensor by which initialisation passes over it: it holds loaded weights."""

_MODEL_ATTRIBUTES = (
    "_can_record_outputs",
    "_from_config",
    "_init_weights",
    "_no_split_modules",
    "initialize_weights",
    "set_attn_implementation",
)
_GPT2_POSITIONAL = 4


def check_internals() -> None:
    """Make sure that transformers still has what the table above says.

    Raises:
        ImportError: it does not; the message names what is missing and the version of transformers.
    """
    missing = [name for name in _MODEL_ATTRIBUTES if not hasattr(PreTrainedModel, name)]
    if missing:
        raise unsupported_transformers(f"PreTrainedModel has no {missing[0]}")
    block, attention = (
        list(inspect.signature(one.forward).parameters)[1 : 1 + _GPT2_POSITIONAL] for one in (GPT2Block, GPT2Attention)
    )
    if block != attention:
        raise unsupported_transformers(
            f"GPT2Block.forward takes {', '.join(block)}, and its attention {', '.join(attention)}"
        )


def register_with(auto_class: Any, config_class: type, classes: list[type[PreTrainedModel]]) -> None:
    """Register the classes that an Auto class opens for a config; of several, `config.architectures` says which."""
    auto_class.register(config_class, classes[0])
    if len(classes) > 1:
        auto_class._model_mapping.register(config_class, tuple(classes), exist_ok=True)


def stock_base(placed: type) -> type:
    """Return transformers' own class behind one of this library's: the model or config that it inherits from."""
    return next(one for one in placed.__mro__ if one.__module__.startswith("transformers.models."))


def stock_part(stock: type, part: str) -> Any:
    """Return a class by transformers' naming of an architecture's parts: `LlamaMLP` for `LlamaConfig` and `MLP`.

    Raises:
        ImportError: there is none; the message names it and the version of transformers.
    """
    module = stock.__module__.replace(".configuration_", ".modeling_")
    name = re.sub("(Model|Config)$", part, stock.__name__)
    found = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise unsupported_transformers(f"cannot import name {name!r} from {module!r}")
    return found


def own_forward(attention: type, mixed_in: type) -> Callable[..., Any]:
    """Return the forward of the architecture's own class, behind `mixed_in` in the order of inheritance."""
    behind = attention.__mro__[attention.__mro__.index(mixed_in) + 1 :]
    return next(vars(one)["forward"] for one in behind if "forward" in vars(one))


def check_reads(forward: Callable[..., Any], names: Iterable[str]) -> None:
    """Make sure that a forward reads these attributes of its module, as far as its code shows.

    Raises:
        ImportError: there is one that it does not; the message names it and the version of transformers.
    """
    inner = inspect.unwrap(forward)
    unread = set(names) - set(inner.__code__.co_names)
    if unread:
        raise unsupported_transformers(f"{inner.__qualname__} does not use {', '.join(sorted(unread))}")


def unread_projections_error(attention: type, names: Iterable[str]) -> RuntimeError:
    """Return the error of an attention whose forward did not call these of its projections once."""
    return RuntimeError(
        f"{attention.__name__} did not call {', '.join(sorted(names))} in its forward, so the norms of the placement "
        f"would be left out: transformers {transformers.__version__} is not supported. Install a version that the "
        "README lists"
    )


def enable_activation_checkpointing(model: PreTrainedModel, **options: Any) -> None:
    """Compute each block's activations again in the backward pass instead of keeping them.

    Args:
        model: a model of transformers, changed in place.
        options: of `torch.utils.checkpoint.checkpoint`, as `use_reentrant=False`; none: transformers' defaults.
    """
    enable: Callable[[dict[str, Any] | None], None] | None = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)(options or None)


def has_activation_checkpointing(model: PreTrainedModel) -> bool:
    """Return whether any block's activations are computed again in the backward pass."""
    found: bool | None = getattr(model, "is_activation_checkpointing", None)
    return model.is_gradient_checkpointing if found is None else found
