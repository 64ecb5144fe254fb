"""Weight files without some blocks: the tensors that stay, byte for byte, under the numbers of their new places."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from safetensors.torch import save_file

from mixln.errors import InputError
from mixln.models.weight_files import WEIGHTS, WEIGHTS_INDEX, StoredTensor, open_weights, stored_tensors

_METADATA = {"format": "pt"}

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class StoredBlocks:
    """Where the blocks of a model are in its weight files.

    Files can have another name for the list than the model, so it is found by its values.

    Attributes:
        prefix: of the names of the list's tensors, before the number of the block.
        kept: indices (from 0) of the blocks that stay.
        num_layers: the number before. Layers with higher numbers (which only predict further tokens) move up.
    """

    prefix: str
    kept: tuple[int, ...]
    num_layers: int

    def after(self, name: str) -> str | None:
        """Return the new name of a stored tensor; None: its block is removed."""
        match = re.match(re.escape(self.prefix) + r"\.(\d+)\.", name)
        if match is None:
            return name
        index = int(match[1])
        if index >= self.num_layers:
            new = index - self.num_layers + len(self.kept)
        elif index in self.kept:
            new = self.kept.index(index)
        else:
            return None
        return f"{self.prefix}.{new}.{name[match.end() :]}"


def find_stored_blocks(
    tensors: Mapping[str, StoredTensor], stack: str, first_block: torch.nn.Module, kept: Sequence[int], num_layers: int
) -> StoredBlocks:
    """Find the list of blocks in weight files: among lists of that length, the one whose first block has the values.

    Args:
        tensors: the stored tensors.
        stack: the model's name of the list.
        first_block: of the model.
        kept: indices (from 0) of the blocks that stay.
        num_layers: of the model.

    Raises:
        InputError: there is no such list.
    """
    lists: dict[str, set[int]] = {}
    for name in tensors:
        for match in re.finditer(r"\.(\d+)\.", name):
            lists.setdefault(name[: match.start()], set()).add(int(match[1]))
    candidates = [prefix for prefix, indices in lists.items() if {*range(num_layers)} <= indices]
    if not candidates:
        raise InputError(f"the weight files hold no list of {num_layers} blocks, as the model's {stack} is")
    values = [tensor for tensor in first_block.state_dict().values() if tensor.device.type != "meta"]

    def agreement(prefix: str) -> tuple[int, int]:
        of_block = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.0.")}
        ends = zip(reversed(prefix.split(".")), reversed(stack.split(".")), strict=False)
        same_end = list(takewhile(lambda pair: pair[0] == pair[1], ends))
        return _count_equal(of_block, values), len(same_end)

    ranked = sorted(candidates, key=agreement)
    return StoredBlocks(ranked[-1], tuple(kept), num_layers)


def _count_equal(tensors: Mapping[str, StoredTensor], values: Sequence[torch.Tensor]) -> int:
    def is_known(stored: torch.Tensor) -> bool:
        same_shape = (value for value in values if value.shape == stored.shape)
        return any(torch.equal(stored.to(value.dtype), value.cpu()) for value in same_shape)

    return sum(stored.numel() for _, stored in _read_one_by_one(tensors) if is_known(stored))


def _read_one_by_one(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for file in {tensor.file for tensor in tensors.values()}:
        with open_weights(file) as stored:
            yield from ((name, stored(name)) for name, tensor in tensors.items() if tensor.file == file)


def keep_shared(renamed: dict[str, str], blocks: StoredBlocks, stack: str, shared: Iterable[Sequence[str]]) -> None:
    """Give a tensor that blocks share, and that is stored with a removed block, to a block that stays.

    Args:
        renamed: stored name to new name of each tensor that stays; extended.
        blocks: where the blocks are stored.
        stack: the model's name of the list.
        shared: for each shared parameter, all of its names in the model.
    """
    taken = {*renamed.values()}
    for names in shared:
        inside = [blocks.prefix + name[len(stack) :] for name in names if name.startswith(f"{stack}.")]
        staying = [new for name in inside if (new := blocks.after(name)) is not None]
        if staying and not taken & {*staying}:
            renamed.update({name: staying[0] for name in inside if blocks.after(name) is None})


def write_shorter_weights(
    source: Mapping[str, StoredTensor], renamed: Mapping[str, str], changes: Mapping[str, Change], folder: Path
) -> None:
    """Write the stored tensors that stay under their new names, file by file, and an index if there are several.

    Args:
        source: the stored tensors.
        renamed: stored name to new name of each tensor that stays.
        changes: by stored name, how a tensor is changed.
        folder: where to write.

    Raises:
        OSError, SafetensorError: a file cannot be read or written.
    """
    files = sorted({source[name].file for name in renamed if name in source})
    written: dict[str, str] = {}
    wanted: dict[str, tuple[torch.dtype, torch.Size]] = {}
    size = 0
    for number, file in enumerate(files, start=1):
        name = WEIGHTS if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        with open_weights(file) as stored:
            own = [(old, new) for old, new in renamed.items() if old in source and source[old].file == file]
            content = {
                new: (changes[old](stored(old)) if old in changes else stored(old)).contiguous() for old, new in own
            }
        save_file(_apart(content), folder / name, metadata=_METADATA)
        size += sum(tensor.nbytes for tensor in content.values())
        written.update(dict.fromkeys(content, name))
        wanted.update({name: (tensor.dtype, tensor.shape) for name, tensor in content.items()})
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(written.items()))}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _check(folder, wanted)


def _apart(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors without shared memory, which safetensors does not write (in a pickle they can share it)."""
    seen: set[int] = set()
    apart: dict[str, torch.Tensor] = {}
    for name, tensor in content.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def _check(folder: Path, wanted: Mapping[str, tuple[torch.dtype, torch.Size]]) -> None:
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in _read_one_by_one(stored_tensors(folder))}
    if differing := sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name)):
        raise InputError(f"the written weights differ from those of the pruned model: {', '.join(differing[:3])}")
