"""The folder of a pruned model: what its source has, less some blocks, and proved before it is put in place.

    config.json     as it was, but for what is about layers (`mixln.measure.shorter_config`)
    weights         the tensors that stay, byte for byte
    the rest        copied: tokenizer, processors, generation config, chat template, pooling modules, licence ...

Then the folder is opened by the model's class, and must be the model that was measured: the same parameters, the same
outputs as the whole model with those blocks bypassed, and the same text with the cache of generation as without.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mixln.errors import InputError
from mixln.measure.probe import find_inputs, generation_fault, outputs_of, same_outputs
from mixln.measure.pruning import kept_blocks, without_blocks
from mixln.measure.shorter_config import Edit, ShorterConfig, shorter_configs
from mixln.measure.structure import Shortening, slice_of_layers, structure_of
from mixln.models.anatomy import BlockStack
from mixln.models.companions import CONFIG_FILE, companions_of, model_folder
from mixln.models.finite import require_finite_parameters
from mixln.models.foreign import ModelCallError, naming_failures
from mixln.models.load import load_config, load_whole_model
from mixln.models.shorter_weights import Change, find_stored_blocks, keep_shared, write_shorter_weights
from mixln.models.weight_files import StoredTensor, stored_tensors
from mixln.records import to_text
from mixln.report.pruning_cost import PruningCost
from mixln.storage import disk_errors, put_on_disk, require_new_folder, whole_folder
from mixln.studies.pruning_request import PRUNING_FILE, PruningRecord, PruningRequest

_MOST_CONFIGS = 4


def open_for_pruning(
    source: str, *, device: torch.device | None = None, device_map: str | None = None
) -> PreTrainedModel:
    """Return the whole model of a folder or hub name, in its own class.

    Args:
        source: Hugging Face folder, or name on the hub, all of whose files are fetched.
        device: to put it on; not with a device_map.
        device_map: see `mixln.models.load.load_model`.

    Raises:
        InputError: as `load_whole_model`; or it is an adapter, or quantised, or a weight is no number.
    """
    if getattr(load_config(source), "quantization_config", None) is not None:
        raise InputError(
            f"{source} is quantised (quantization_config in config.json), so the pruned model could not be "
            "compared with it. Prune the model that it was made from, then quantise the result"
        )
    model = load_whole_model(str(model_folder(source)), device=device, device_map=device_map)
    require_finite_parameters(model)
    return model


def prune_model(
    request: PruningRequest,
    stack: BlockStack,
    indices: Sequence[int],
    out: str | Path,
    cost: PruningCost | None = None,
) -> PruningRecord:
    """Write a model without some blocks as a Hugging Face folder of its class; the model itself stays as it is.

    The folder holds what the source holds, and what was removed (`pruning.json`).

    Args:
        request: what was asked for.
        stack: of the whole model of `request.source`, as `open_for_pruning` gives it.
        indices: of the blocks to remove, from 0.
        out: the folder to write, whole or not at all; it must not exist, or be empty.
        cost: of removing them, for the record.

    Returns:
        What was removed, as in `pruning.json`; with what of the source was left out (see `mixln.models.companions`).

    Raises:
        InputError: the blocks are not there; no folder can hold what is left; the folder that was written is not the
            model that was measured; or it cannot be written.
    """
    out = Path(out)
    require_new_folder(out)
    folder = model_folder(request.source)
    kept = kept_blocks(indices, len(stack.layers))
    proof = _Proof(stack, indices)
    configs = shorter_configs(stack, kept)
    found = next(configs)
    companions = companions_of(folder)
    record = replace(request.record(indices, len(stack.layers)), left_out=list(companions.left_out), cost=cost)
    tensors = stored_tensors(folder)
    blocks = find_stored_blocks(tensors, stack.name, stack.layers[0], kept, len(stack.layers))
    renamed = {name: new for name in tensors if (new := blocks.after(name)) is not None}
    keep_shared(renamed, blocks, stack.name, _shared(stack.model))
    changes = _slices(found, tensors)
    saving = disk_errors(f"the model could not be saved in {out}", "Make room, or choose another place")
    with saving, whole_folder(out) as temporary:
        companions.copy_to(temporary)
        write_shorter_weights(tensors, renamed, changes, temporary)
        (temporary / PRUNING_FILE).write_text(to_text(record), encoding="utf-8")
        _write_config_of(proof, islice(chain([found], configs), _MOST_CONFIGS), folder, temporary)
        put_on_disk(temporary)  # the user may remove the source next
    return record


def _write_config_of(proof: _Proof, configs: Iterable[ShorterConfig], source: Path, folder: Path) -> None:
    """Write the first of the configs with which the folder is the model that was measured.

    Raises:
        InputError: with none it is; says why not with the first, which is the likeliest.
    """
    faults: list[InputError] = []
    for found in configs:
        try:
            _write_config(source, found, folder)
            proof.check(folder, found)
            return
        except InputError as error:
            faults.append(error)
    raise faults[0]


def _shared(model: torch.nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [found for found in names.values() if len(found) > 1]


def _slices(found: ShorterConfig, tensors: Mapping[str, StoredTensor]) -> dict[str, Change]:
    """How the stored tensors with a part for each block are cut; they end as they do in the model.

    Raises:
        InputError: which they are is not clear.
    """
    changes: dict[str, Change] = {}
    for name, dimension in found.shorter.sliced(structure_of(found.described)).items():
        shape = found.shorter.whole.tensors[name][1]
        last = ".".join(name.split(".")[-2:])
        stored = [other for other, tensor in tensors.items() if other.endswith(last) and tensor.shape == shape]
        if len(stored) != 1:
            raise InputError(f"{name} has a part for each layer, and is not found in the weight files")
        changes[stored[0]] = partial(slice_of_layers, dimension=dimension, shortening=found.shorter.shortening)
    return changes


class _Proof:
    """That a folder holds the model that was measured.

    Args:
        stack: of the whole model.
        indices: of the blocks that go.

    Raises:
        InputError: the model cannot be run.
    """

    def __init__(self, stack: BlockStack, indices: Sequence[int]) -> None:
        self._model: Any = stack.model
        self._shortening = Shortening(stack.name, tuple(kept_blocks(indices, len(stack.layers))), len(stack.layers))
        self._part, self._inputs = find_inputs(stack)
        what = f"a {type(self._model).__name__} does not run without these layers"
        with naming_failures(what, "Others need what they make, such as another width"), without_blocks(stack, indices):
            self._wanted = outputs_of(self._model.get_submodule(self._part), self._inputs)
        # of some architectures it differs in any case
        self._generates = self._model.can_generate() and generation_fault(self._model) is None

    def check(self, folder: Path, found: ShorterConfig) -> None:
        """Open a folder, and compare.

        Raises:
            InputError: it holds another model.
        """
        model = self._opened(folder)
        fault = self._other_tensors(model, found) or self._other_outputs(model)
        if fault or (self._generates and (fault := generation_fault(model))):
            raise InputError(
                f"a {type(model).__name__} without these layers would not be the model that was measured: {fault}. Its "
                "layers depend on their place, or on the removed ones, in a way that no config can express"
            )

    def _opened(self, folder: Path) -> PreTrainedModel:
        dtype = self._model.config.dtype
        device_map = getattr(self._model, "hf_device_map", None)
        try:
            model = load_whole_model(
                str(folder),
                dtype="auto" if dtype is None else str(dtype).removeprefix("torch."),
                device=None if device_map else next(self._model.parameters()).device,
                device_map="auto" if device_map else None,
            )
        except InputError as error:
            raise InputError(str(error).replace(str(folder), "the pruned model")) from error
        if type(model) is not type(self._model):
            raise InputError(f"the pruned model opens as a {type(model).__name__}, not a {type(self._model).__name__}")
        return model

    def _other_outputs(self, model: PreTrainedModel) -> str | None:
        try:
            with naming_failures("it does not run"):
                found = outputs_of(model.get_submodule(self._part), self._inputs)
        except ModelCallError as error:
            return f"it does not run ({error.reason})"
        return same_outputs(self._wanted, found)

    def _other_tensors(self, model: PreTrainedModel, found: ShorterConfig) -> str | None:
        sliced = found.shorter.sliced(structure_of(found.described))
        before, after = _tensors_of(self._model), _tensors_of(model)
        wanted = {new for name in before if (new := self._shortening.after(name)) is not None}
        if wrong := sorted(wanted ^ after.keys()):
            return f"{wrong[0]} would {'not ' if wrong[0] in wanted else ''}be there"
        saved = model.state_dict().keys()
        for name, tensor in after.items():
            whole = before[self._shortening.before(name)]
            if "meta" in (whole.device.type, tensor.device.type):  # offloaded
                continue
            if name in sliced:
                whole = slice_of_layers(whole, sliced[name], self._shortening)
            if name not in saved and whole.ndim == tensor.ndim:
                # computed, such as positions as far as the longest text so far: what both models have of it is compared
                common = tuple(slice(min(sizes)) for sizes in zip(whole.shape, tensor.shape, strict=True))
                whole, tensor = whole[common], tensor[common]
            if whole.dtype != tensor.dtype or not torch.equal(whole, tensor.to(whole.device)):
                return f"{name} would have other values"
        return None


def _tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def _write_config(source: Path, found: ShorterConfig, folder: Path) -> None:
    """Change fields in the file itself, so that all others stay; then check that it is read as this config."""
    file = folder / CONFIG_FILE
    wanted = found.described.config.to_dict()
    raw = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    for edit in found.edits:
        _edit(raw, found.described.config, edit)
    file.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not _says(folder, wanted):
        # a config in an older form, whose fields lie elsewhere
        type(found.described.config).from_dict(found.fields).save_pretrained(folder)
        if not _says(folder, wanted):
            raise InputError(f"the config of a {type(found.described).__name__} could not be written for fewer layers")


def _edit(raw: dict[str, Any], config: Any, edit: Edit) -> None:
    for name in edit.path:
        raw = raw.setdefault(name, {})
        config = getattr(config, name)
    aliases = [alias for alias, key in config.attribute_map.items() if key == edit.key and alias in raw]
    for name in aliases or [edit.key]:
        if edit.value is None:
            raw.pop(name, None)
        else:
            raw[name] = edit.value


def _says(folder: Path, fields: Mapping[str, Any]) -> bool:
    try:
        return _comparable(load_config(str(folder)).to_dict()) == _comparable(fields)
    except InputError:
        return False


def _comparable(value: Any) -> Any:
    """Fields as JSON holds them, without those that say nothing of the architecture."""
    if isinstance(value, Mapping):
        without = {"transformers_version", "_name_or_path", "dtype", "torch_dtype"}
        return {str(key): _comparable(inner) for key, inner in value.items() if key not in without}
    return [_comparable(inner) for inner in value] if isinstance(value, (list, tuple)) else value
