"""What a user names as a model or a corpus: whether it can be there, and what it is, before PyTorch is imported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mixln.announce import format_count
from mixln.errors import InputError
from mixln.hub import require_access
from mixln.records import parse_json, read_json

C4 = ("allenai/c4", "en")
"""Name and configuration of the corpus of the published recipes."""

_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_MOST_HEADER = 100_000_000
"""Bytes, as the safetensors library has it."""


def check_model(name_or_path: str) -> None:
    """Make sure that a model can be there: a folder with a config, or a name that the hub or its cache may have.

    Raises:
        InputError: it cannot.
    """
    path = Path(name_or_path)
    # a name on the hub is OWNER/NAME or NAME
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2 or name_or_path.startswith(".")):
        raise InputError(f"there is no folder {path}. Give one that save_pretrained wrote, or a name on the hub")
    if path.is_dir() and not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise InputError(
                f"{path} holds an adapter of PEFT, not a model. Merge it into its model, and give the folder of that: "
                f'AutoPeftModelForCausalLM.from_pretrained("{path}").merge_and_unload().save_pretrained(FOLDER)'
            )
        raise InputError(f"{path} has no config.json: give the folder that holds the model itself (in a run: model/)")
    if path.is_file():
        raise InputError(f"{path} is a file: give the folder that holds config.json and the weights")
    require_access(name_or_path)


def describe_model(name_or_path: str) -> str:
    """Return what a model is, in words, as far as can be told without PyTorch: class, layers, parameters, precision.

    Raises:
        InputError: as `check_model`.
    """
    check_model(name_or_path)
    path = Path(name_or_path)
    if not path.is_dir():
        return f"{name_or_path}, a name on the hub"
    return ", ".join([name_or_path, *_facts(path)])


def _facts(folder: Path) -> Iterator[str]:
    """What config and weight files say, in words; nothing of what is damaged, which is said where it is opened."""
    try:
        config: Any = read_json(folder / "config.json")
        yield from (name for name in (config.get("architectures") or [])[:1] if isinstance(name, str))
        layers = next((config[name] for name in _LAYER_COUNTS if name in config), None)
        if layers is not None:
            yield f"{layers} layers"
        if "placement" in config:
            yield f"placement {config['placement']}"
        tensors = [tensor for file in folder.glob("*.safetensors") for tensor in _header(file)]
        if tensors:
            yield format_count(sum(math.prod(tensor["shape"]) for tensor in tensors), "parameters")
            yield " and ".join(sorted({tensor["dtype"] for tensor in tensors}))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return


def _header(file: Path) -> list[dict[str, Any]]:
    """The tensors that a safetensors file holds: a number of bytes, then JSON."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header: Any = parse_json(opened.read(size), file.name) if size < _MOST_HEADER else {}
    return [tensor for name, tensor in header.items() if name != "__metadata__"]


def dataset_name(source: str) -> str | None:
    """Return the name of the hub's dataset that a corpus means; None: it is none of the hub's."""
    if source == "c4" or source.startswith("c4:"):
        return C4[0]
    if source.startswith("hf:"):
        return source.split(":")[1].partition("@")[0] or C4[0]
    return None


def check_corpus(source: str, prepared: Path | None = None) -> None:
    """Make sure that a dataset of the hub can be read; what else a corpus can be is found out where it is opened.

    Args:
        source: as `mixln.data.open_corpus` takes it.
        prepared: folder of tokenised data, where it may be found done already; None: it is read anew.

    Raises:
        InputError: it is a dataset of the hub, which does not answer, and the cache does not have it.
    """
    name = dataset_name(source)
    if name is not None and not (prepared is not None and _is_prepared(name, prepared)):
        require_access(name, "dataset", local=False)


def describe_corpus(source: str) -> str:
    """Return what a corpus is, in words."""
    if source == "python":
        return "python, the standard library's own text"
    if (name := dataset_name(source)) is not None:
        return f"{source}, the dataset {name} on the hub"
    path = Path(source)
    try:
        return f"{source}, {path.stat().st_size / 1e6:.1f} MB" if path.is_file() else f"{source}, a folder"
    except OSError:
        return source


def check_images(source: str) -> None:
    """Make sure that images can be there: a folder, a file, or a dataset that the hub or its cache may have.

    Raises:
        InputError: they cannot.
    """
    path = Path(source).expanduser()
    # a name on the hub is OWNER/NAME or NAME
    if not path.exists() and (
        path.is_absolute() or len(path.parts) > 2 or source.startswith(".") or ".tar" in path.name
    ):
        raise InputError(f"there is no {path}. Give a folder or a tar archive of images, or a dataset on the hub")
    if not path.exists():
        require_access(source, "dataset", local=False)


def describe_images(source: str) -> str:
    """Return what a source of images is, in words."""
    path = Path(source).expanduser()
    if path.is_file():
        return f"{source}, {path.stat().st_size / 1e6:.1f} MB"
    return f"{source}, a folder" if path.is_dir() else f"{source}, a dataset on the hub"


def _is_prepared(name: str, folder: Path) -> bool:
    """Whether any tokens of a hub's dataset are there, by these settings or others."""
    for manifest in folder.glob("*/manifest.json"):
        with suppress(OSError, InputError, LookupError, TypeError):
            if dataset_name(read_json(manifest)["source"]["name"]) == name:
                return True
    return False
