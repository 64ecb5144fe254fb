"""Opening a checkpoint folder or hub name, with errors that a user can act on."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mixln.errors import InputError

_UNUSABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What transformers raises, depending on what is wrong with a folder's files."""


def load_causal_lm(name_or_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the language model and tokenizer of a Hugging Face folder or hub name, the model in evaluation mode.

    Code that a checkpoint brings along is never run.

    Raises:
        InputError: there is no such checkpoint, or it is damaged, incomplete, or no causal language model.
    """
    path = Path(name_or_path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{path} has no config.json: give the folder that holds the model itself (in a run: model/)")
    if path.is_file():
        raise InputError(f"{path} is a file: give the folder that holds config.json and the weights")
    try:
        model = AutoModelForCausalLM.from_pretrained(name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (*_UNUSABLE, StrictDataclassError, SafetensorError) as error:
        # a strict config names its field first, and says what is wrong with it in the cause
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        reason = f"{type(cause).__name__}: {cause}".split("\n")[0]
        raise InputError(
            f"{name_or_path} cannot be opened as a causal language model: {reason}. Give a folder that "
            "save_pretrained wrote, or the name of a model on the Hugging Face hub"
        ) from error
    return model.eval(), tokenizer
