"""Reading what `torch.distributed.checkpoint` has written, without running anything that lies in it.

Its `.metadata` is a pickle, which PyTorch reads with `pickle.load`; and for an entry that this pickle declares to be no
tensor, its planner calls `torch.load(weights_only=False)`. So whoever writes a checkpoint could run code in whoever
reads it. PyTorch's own weights-only unpickler knows no pickles of a protocol above 2, and these are of protocol 4 or 5.
Hence a `pickle.Unpickler` that finds nothing but the plain classes which such a file consists of, as Python's manual
recommends ("Restricting Globals"), and a check that there are tensors alone, in files of the checkpoint's own. The
tensors themselves PyTorch reads with `weights_only=True`.
"""

from __future__ import annotations

import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

METADATA_FILE = ".metadata"

_PLAIN_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
}
"""What the `.metadata` of tensors refers to, beside dtypes and paths; none of it does more than hold what it is given.

`BytesStorageMetadata` is not among them: it stands for an object of any class, to be unpickled.
"""

_PATHS = {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}


class TensorReader(FileSystemReader):
    """The reader of a checkpoint that holds tensors alone; pass it to `read_tensors`.

    Args:
        checkpoint: the folder of the checkpoint.

    Raises:
        ValueError: its `.metadata` is missing or damaged, or refers to what no checkpoint of tensors needs.
    """

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        self._metadata = _read_metadata(checkpoint / METADATA_FILE)

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors in it."""
        return frozenset(self._metadata.state_dict_metadata)

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        """Return what the constructor has read and checked."""
        self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self._metadata


def read_tensors(state: dict[str, Any], reader: TensorReader, group: dist.ProcessGroup | None, *, alone: bool) -> None:
    """Read tensors of a checkpoint into those that are given, each process its part.

    Args:
        state: name to tensor, each of the size that was saved; its values are overwritten.
        reader: of the checkpoint.
        group: of the processes that read together; None: all of them.
        alone: whether this process reads alone.

    Raises:
        ValueError: a tensor is missing, of another size, damaged, or more than a tensor.
    """
    try:
        load(state, storage_reader=reader, process_group=group, no_dist=alone)
    except (Exception, CheckpointException) as error:
        # torch's collects whatever was raised, Ctrl-C too
        failures = error.failures.values() if isinstance(error, CheckpointException) else ()
        cause = next((failure[0] for failure in failures), error)
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or not isinstance(cause, Exception):
            raise cause from error
        raise ValueError(first_line(cause)) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if global_name in _PLAIN_CLASSES.get(module_name, ()):
            return super().find_class(module_name, global_name)
        if module_name == "torch" and isinstance(dtype := getattr(torch, global_name, None), torch.dtype):
            return dtype
        if module_name.partition(".")[0] == "pathlib" and global_name in _PATHS:
            return PurePath  # where it was written, which nobody asks; perhaps on another system
        raise pickle.UnpicklingError(
            f"it refers to {module_name}.{global_name}, which no checkpoint of tensors needs; nothing of it was run"
        )


def _read_metadata(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            metadata: object = _PlainUnpickler(file).load()
        return _checked(metadata)
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is missing") from error
    except Exception as error:  # what a damaged pickle raises can be anything, says Python's manual
        raise ValueError(f"{path.name} cannot be read: {first_line(error)}") from error


def _checked(metadata: object) -> Metadata:
    if not isinstance(metadata, Metadata):
        raise ValueError(f"it holds a {type(metadata).__name__}")
    for name, stored in metadata.state_dict_metadata.items():
        if not isinstance(name, str) or not isinstance(stored, TensorStorageMetadata):
            raise ValueError(f"{name} is no tensor")
    for stored in metadata.storage_data.values():
        file = stored.relative_path
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".distcp"):
            raise ValueError(f"it refers to the file {file}, which is none of a checkpoint's own")
        if getattr(stored, "transform_descriptors", None):
            raise ValueError(f"{file} is compressed, which no checkpoint of a run is")
    return metadata
