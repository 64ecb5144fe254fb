"""The files beside the weights in a model's folder: tokenizer, processors, pooling modules, licence ..."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from mixln.errors import InputError
from mixln.hub import hub_access
from mixln.models.weight_files import WEIGHTS, weight_files

CONFIG_FILE = "config.json"
_ADAPTER_FILE = "adapter_config.json"
_MODULES_FILE = "modules.json"  # of sentence-transformers

_WEIGHT_ENDINGS = (
    *(".safetensors", ".bin", ".index.json", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data"),
    *(".gguf", ".ggml", ".ot", ".tflite", ".mlmodel", ".pdparams", ".nemo", ".distcp"),
)
_OTHER_FORMATS = [f"*{ending}" for ending in _WEIGHT_ENDINGS if ending not in (".safetensors", ".bin", ".index.json")]
_CACHES = ("__pycache__", "checkpoint-", "global_step")
_OF_THE_WHOLE_MODEL = ("healing.json", "reward.json", "trainer_state.json", "training_args.bin")


@dataclass(frozen=True)
class Companions:
    """The files of a model's folder beside its config and weights.

    Attributes:
        folder: of the model.
        kept: the files that go with a changed model too, relative to the folder.
        left_out: weights in other formats, checkpoints, and files that only fit the unchanged model; folders end in a
            slash.
    """

    folder: Path
    kept: tuple[Path, ...]
    left_out: tuple[str, ...]

    def copy_to(self, folder: Path) -> None:
        """Copy the kept files into another folder."""
        for path in self.kept:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / path, folder / path)


def model_folder(name_or_path: str) -> Path:
    """Return the folder of a model with all of its files: the given one, or a snapshot from the hub.

    Raises:
        InputError: it cannot be fetched, or is an adapter.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        try:
            with hub_access(name_or_path):
                folder = Path(snapshot_download(name_or_path, ignore_patterns=[*_OTHER_FORMATS, "*.bin", "original/*"]))
                if not weight_files(folder):
                    folder = Path(snapshot_download(name_or_path, ignore_patterns=[*_OTHER_FORMATS, "original/*"]))
        except InputError:
            raise
        except Exception as error:  # of the network, the hub or the disk
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{name_or_path} cannot be fetched from the hub: {reason}. Give a folder instead"
            ) from error
    if (folder / _ADAPTER_FILE).is_file():
        raise InputError(
            f"{name_or_path} holds an adapter ({_ADAPTER_FILE}), whose layers are those of the whole model. Merge it "
            "first (peft: merge_and_unload), and save that"
        )
    return folder


def companions_of(folder: Path) -> Companions:
    """Find what goes with a model whose weights change.

    Weights in any format are left out, since they belong to the unchanged model; so are subfolders with weights.
    The modules of sentence-transformers (`modules.json`) are kept whole.

    Raises:
        InputError: modules.json is damaged.
    """
    modules = _modules(folder)
    kept: list[Path] = []
    left_out: list[str] = []
    for path in sorted(folder.iterdir()):
        name = path.name
        if name == CONFIG_FILE or name.startswith("."):
            continue
        if path.is_dir():
            files = [file.relative_to(folder) for file in sorted(path.rglob("*")) if file.is_file()]
            stale = name.startswith(_CACHES) or any(map(_is_weights, files))
            if stale and name not in modules:
                left_out.append(f"{name}/")
            else:
                kept += files
        elif _is_weights(path) or name in _OF_THE_WHOLE_MODEL:
            left_out.append(name)
        else:
            kept.append(Path(name))
    files = weight_files(folder)
    own = {file.name for file in files} | {f"{WEIGHTS}.index.json", "pytorch_model.bin.index.json"}
    return Companions(folder, tuple(kept), tuple(name for name in left_out if name not in own))


def _is_weights(path: Path) -> bool:
    return path.name.endswith(_WEIGHT_ENDINGS)


def _modules(folder: Path) -> set[str]:
    """Return the subfolders that sentence-transformers has modules in."""
    file = folder / _MODULES_FILE
    if not file.is_file():
        return set()
    try:
        paths = [str(module["path"]) for module in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}: {error}). Fetch the model anew") from error
    return {Path(path).parts[0] for path in paths if path}
