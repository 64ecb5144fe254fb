"""Opening a checkpoint folder or hub name, with errors that a user can act on.

Code that a checkpoint brings along is never run, and transformers does not ask whether it may be: every call has
`trust_remote_code=False`. No weight is ever made up either: what the files lack is an error.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Tokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mixln.errors import InputError
from mixln.hub import hub_access
from mixln.models.causal import is_causal_language_model, predicts_next_token, without_heads
from mixln.models.inputs import require_input
from mixln.models.model_class import classes_for, in_mapping, model_class_of, require_fitting_classes
from mixln.models.weight_files import require_plausible_size
from mixln.quiet import quiet_transformers
from mixln.sources import check_model
from mixln.system_errors import exhaustion


def load_causal_lm(name_or_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the language model and tokenizer of a Hugging Face folder or hub name, the model in evaluation mode.

    Raises:
        InputError: there is no such checkpoint, or it is damaged, incomplete, or no causal language model.
    """
    return load_bare_causal_lm(name_or_path), load_tokenizer(name_or_path)


def load_bare_causal_lm(name_or_path: str) -> PreTrainedModel:
    """Return the language model of a Hugging Face folder or hub name, in evaluation mode; it may have no tokenizer.

    Raises:
        InputError: as `load_causal_lm`.
    """
    config = load_config(name_or_path, _CAUSAL)
    if (other := other_kind(config, name_or_path)) is not None:
        raise InputError(
            f"{name_or_path} is a {other}, which does not predict the next token of a text. Give a causal language "
            "model"
        )
    return _open(name_or_path, config, AutoModelForCausalLM, _CAUSAL, {})


def other_kind(config: PreTrainedConfig, name_or_path: str) -> str | None:
    """Return the class of a model that is no causal language model; None: it is one, its base, or an unknown class.

    Args:
        config: of the model.
        name_or_path: for errors.
    """
    try:
        model_class = model_class_of(config, name_or_path)
    except InputError:
        return None
    has_causal_form = classes_for(type(config), MODEL_FOR_CAUSAL_LM_MAPPING)
    if has_causal_form and in_mapping(model_class, MODEL_MAPPING):
        return None
    if predicts_next_token(model_class, is_encoder_decoder=bool(config.is_encoder_decoder)):
        return None
    return model_class.__name__


_OWN_CODE = "trust_remote_code"
"""What transformers' error names when a checkpoint cannot do without its own code."""
_CAUSAL = "a causal language model"


def load_model(
    name_or_path: str, *, dtype: str = "auto", device: torch.device | None = None, device_map: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the part of any model that is measured, and its tokenizer; see `measured_part`.

    Args:
        name_or_path: Hugging Face folder, or name on the hub.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: that of the checkpoint.
        device: where to put it; not with a device_map.
        device_map: as in transformers (`auto` spreads a large model over all devices); None: one device.

    Raises:
        InputError: there is no such checkpoint, or it is damaged or incomplete, or accelerate is needed and missing; or
            the model takes images.
    """
    config = load_config(name_or_path)
    opener: Any = AutoModel
    if config.architectures:
        model_class = model_class_of(config, name_or_path)
        require_input(model_class, "text")
        # the parts of an encoder-decoder with a head lie in the class itself: its base model is opened by AutoModel
        if not config.is_encoder_decoder or in_mapping(model_class, MODEL_MAPPING):
            opener = model_class
    model = _open(name_or_path, config, opener, "a model", _options(dtype, device_map))
    return _on(measured_part(model), device, device_map), load_tokenizer(name_or_path)


def load_whole_model(
    name_or_path: str, *, dtype: str = "auto", device: torch.device | None = None, device_map: str | None = None
) -> PreTrainedModel:
    """Return a model with its heads, of the class that its config names.

    Args:
        name_or_path: Hugging Face folder, or name on the hub.
        dtype: as in `load_model`.
        device: as in `load_model`.
        device_map: as in `load_model`.

    Raises:
        InputError: as `load_model`, or the config names no class that transformers has.
    """
    config = load_config(name_or_path)
    model_class = model_class_of(config, name_or_path)
    model = _open(name_or_path, config, model_class, f"a {model_class.__name__}", _options(dtype, device_map))
    return _on(model, device, device_map)


def model_name(model: torch.nn.Module) -> str:
    """Return what a model in memory was loaded from; of one that was built, its class."""
    return str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__)


def measured_part(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a model that is run to measure its layers.

    That is the whole model if it predicts the next token: then the loss is measured. Else it is the part without heads,
    which gives `last_hidden_state`. The blocks are the model's own.
    """
    if is_causal_language_model(model):
        return model
    base: Any = without_heads(model)[0]
    return base


_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential", "cpu", "cuda")


def _options(dtype: str, device_map: str | None) -> dict[str, Any]:
    if device_map is not None and device_map not in _DEVICE_MAPS:
        raise InputError(f"there is no `device_map={device_map}`. There are: {', '.join(_DEVICE_MAPS)}")
    return {"dtype": dtype, **({} if device_map is None else {"device_map": device_map})}


def _on(model: PreTrainedModel, device: torch.device | None, device_map: str | None) -> PreTrainedModel:
    if device is not None and device_map is None:
        torch.nn.Module.to(model, device)
    return model


def _open(
    name_or_path: str, config: PreTrainedConfig, opener: Any, what: str, options: dict[str, Any]
) -> PreTrainedModel:
    """Open a model by a class, or an Auto class, after a look at what is in the folder."""
    return open_with_new_head(name_or_path, config, opener, what, options, may_be_new=False)[0]


def open_with_new_head(
    name_or_path: str, config: PreTrainedConfig, opener: Any, what: str, options: dict[str, Any], *, may_be_new: bool
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Open a model by an Auto class, and return it in evaluation mode with the names of the parameters that are new.

    Args:
        name_or_path: Hugging Face folder, or name on the hub.
        config: of the folder.
        opener: the Auto class, or a class.
        what: it is opened as, for errors.
        options: of `from_pretrained`.
        may_be_new: whether the folder may lack the parameters outside of the base model, all of them.

    Raises:
        InputError: it cannot be opened; or a parameter is missing that may not be.
    """
    with _naming_damage(name_or_path, what):
        if getattr(config, "auto_map", None) and config.architectures:
            model_class_of(config, name_or_path)  # refuses a class that only the folder's own code has
        _check_size(name_or_path, config, opener)
        with quiet_transformers(), hub_access(name_or_path):
            model, found = opener.from_pretrained(
                name_or_path, trust_remote_code=False, output_loading_info=True, **options
            )
    head = sorted(name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}."))
    new = tuple(head) if may_be_new and set(found["missing_keys"]) == set(head) else ()
    if missing := sorted(set(found["missing_keys"]) - set(new)):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{name_or_path} cannot be opened as {what}: the weights of a {type(model).__name__} are incomplete, and "
            f"these would be random numbers: {', '.join(missing[:3])}{more}. Give a folder that holds all weights"
        )
    _require_all_described(model, found["unexpected_keys"], name_or_path)
    return model.eval(), new


def _require_all_described(model: PreTrainedModel, unread: Iterable[str], name_or_path: str) -> None:
    """Make sure that no layer of the weights was left out because the config says that there are fewer.

    Layers that only predict further tokens come after the others; the config counts them apart.

    Raises:
        InputError: one was left out.
    """
    further = getattr(model.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    # a base model's weights may lie in a folder of the whole one, and the other way round: names differ by this prefix
    prefix = f"{model.base_model_prefix}."
    lists |= {f"{prefix}{name}": length for name, length in lists.items()} | {
        name.removeprefix(prefix): length for name, length in lists.items()
    }
    for name in sorted(unread):
        match = re.match(r"(.+?)\.(\d+)\.", name)
        if match is not None and (length := lists.get(match[1])) is not None and int(match[2]) >= length + further:
            raise InputError(
                f"{name_or_path}: the weights hold {name}, but config.json describes a {type(model).__name__} with "
                f"{length} of these layers, which would be another model. Correct the number of layers there"
            )


def _check_size(name_or_path: str, config: PreTrainedConfig, opener: Any) -> None:
    folder = Path(name_or_path)
    if not folder.is_dir():
        return

    def build(config: PreTrainedConfig) -> PreTrainedModel:
        if isinstance(opener, type) and issubclass(opener, PreTrainedModel):
            return opener._from_config(config)
        return opener.from_config(config, trust_remote_code=False)

    with warnings.catch_warnings(action="ignore"):  # what there is to say of the model is said when it is opened
        require_plausible_size(build, copy.deepcopy(config), folder)


def load_plausible_config(name_or_path: str) -> PreTrainedConfig:
    """Return the config of a model, whose sizes fit its weights; for plans that are made before these are read.

    Raises:
        InputError: as `load_config`; or the config describes a model far larger than the weights beside it.
    """
    config = load_config(name_or_path)
    with _naming_damage(name_or_path, "a model"):
        _check_size(name_or_path, config, AutoModel)
    return config


def load_config(name_or_path: str, what: str = "a model") -> PreTrainedConfig:
    """Return the config of a model.

    Args:
        name_or_path: Hugging Face folder, or name on the hub.
        what: it is opened as, for the error.

    Raises:
        InputError: there is no such model, or its config is damaged.
    """
    check_model(name_or_path)
    with _naming_damage(name_or_path, what), hub_access(name_or_path):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    require_fitting_classes(config, name_or_path)
    return config


def load_tokenizer(
    name_or_path: str, fix: str = "Save the model's beside it, with tokenizer.save_pretrained"
) -> PreTrainedTokenizerBase:
    """Return any Hugging Face tokenizer that needs no code of its own.

    Args:
        name_or_path: name on the hub, or folder; one with no more than GPT-2's `vocab.json` and `merges.txt` will do.
        fix: what to do if it cannot be opened, for the error.

    Raises:
        InputError: there is none, or none that can be opened.
    """
    folder = Path(name_or_path).expanduser()
    is_folder = folder.is_dir()
    bare_gpt2 = is_folder and {"merges.txt", "vocab.json"} == {file.name for file in folder.glob("*.*")}
    opener = GPT2Tokenizer if bare_gpt2 else AutoTokenizer
    try:
        with hub_access(name_or_path, "tokenizer"):
            return opener.from_pretrained(str(folder) if is_folder else name_or_path, trust_remote_code=False)
    except Exception as error:
        if isinstance(error, InputError) or exhaustion(error) is not None:
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"cannot load tokenizer {name_or_path!r} ({type(error).__name__}: {reason}). {fix}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["without a reason"])[0].rstrip(".")


@contextmanager
def _naming_damage(name_or_path: str, what: str) -> Iterator[None]:
    """Turn any error inside the `with` block into an InputError: damaged files raise errors of every kind.

    This library's own errors and those of the machine (no memory, say) pass.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(f"{name_or_path} needs a package that is not installed: {_first_line(error)}") from error
    except Exception as error:
        if isinstance(error, InputError) or exhaustion(error) is not None:
            raise
        raise InputError(_cannot_open(name_or_path, what, error)) from error


def _cannot_open(name_or_path: str, what: str, error: BaseException) -> str:
    if _OWN_CODE in str(error):
        return (
            f"{name_or_path} cannot be opened as {what}: it needs its own code, which is never run. Give a model of a "
            "class that transformers has"
        )
    # a strict config names its field first, and says what is wrong with it in the cause
    cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    reason = f"{type(cause).__name__}: {_first_line(cause)}"
    return (
        f"{name_or_path} cannot be opened as {what}: {reason}. Give a folder that save_pretrained wrote, or the name "
        "of a model on the Hugging Face hub"
    )
