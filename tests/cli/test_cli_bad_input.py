"""Input that is wrong, damaged or hostile: one message, status 2, nothing half-written, nothing of it run.

Each case is a way in which somebody's folder, file or machine differs from what a command expects. A new one is one
entry of `CASES`: a function that makes the input in a folder of its own, and returns the arguments and words of the
message.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny_llama
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from transformers import AutoModelForCausalLM

from mixln import cli
from mixln.cli import main
from mixln.data import PreparedData
from mixln.manifest import MANIFEST_FILE, write_manifest

TINY = [
    *("--model.hidden-size", "32", "--model.intermediate-size", "64", "--model.num-hidden-layers", "2"),
    *("--data.vocab-size", "300", "--data.sequence-length", "64", "--data.validation-fraction", "0.2"),
    *("--data.max-validation-tokens", "500", "--batch-size", "4", "--execution.trackers", "[]"),
]
KEEP = ["--steps", "4", "--execution.checkpoint-every", "1", "--execution.keep-every", "1"]
DEEP = "[" * 50_000 + "]" * 50_000
NESTED = "[" * 200 + "]" * 200
"""Which Python can still read, but not always walk through."""
HUGE = "1" + "0" * 5_000
LARGE = "1" + "0" * 400
"""Which Python reads as a whole number, but which is no float."""


class Payload:
    """What runs when it is unpickled: it leaves a mark in the file system."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.mark,))


@dataclass
class Workshop:
    """What a case has to work with: copies of sound inputs, to be spoilt."""

    folder: Path
    corpus: Path
    cache: Path
    sources: Path

    @property
    def out(self) -> Path:
        """Where a command is told to write; at the end nothing may be there."""
        return self.folder / "out"

    @property
    def mark(self) -> Path:
        """What a payload leaves behind if it is run."""
        return self.folder / "payload-was-run"

    def copy(self, name: str) -> Path:
        """A copy of a sound input: run, model, stock, published, prepared, pruned."""
        return Path(shutil.copytree(self.sources / name, self.folder / name))

    def run(self) -> Path:
        """A run with a checkpoint at each of three steps, and no finished model."""
        run = self.copy("run")
        shutil.rmtree(run / "model")
        return run

    def train(self, run: Path) -> list[str]:
        """The command that a run was begun with."""
        return ["train", "--text", str(self.corpus), "--cache", str(self.cache), *TINY, *KEEP, "--out", str(run)]


Case = Callable[[Workshop], tuple[list[str], str]]
CASES: dict[str, Case] = {}
SLOW: set[str] = set()
"""Cases that differ little from others."""


def case(made: Case) -> Case:
    CASES[made.__name__] = made
    return made


@pytest.fixture(scope="session")
def sources(corpus: Path, data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound inputs, made once."""
    root = tmp_path_factory.mktemp("sound")
    workshop = Workshop(root, corpus, root / "cache", root)
    assert main([*workshop.train(root / "run"), "--model.placement", "pre"]) == 0
    shutil.copytree(root / "run" / "model", root / "model")
    save_tiny_llama(root / "stock", data.tokenizer, 4)
    published = Path(shutil.copytree(root / "model", root / "published"))
    config = json.loads((published / "config.json").read_text())
    for name in ("placement", "own_initializer_range", "rope_parameters"):
        config.pop(name, None)
    config |= {"model_type": "llama", "initializer_range": 0.02, "pad_token_id": -1, "max_sequence_length": 64}
    (published / "config.json").write_text(json.dumps(config))
    arguments = ["data", "prepare", "--text", str(corpus), "--cache", str(root / "cache"), *TINY]
    assert main([*arguments, "--out", str(root / "prepared"), "--workers", "1"]) == 0
    return root


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"))


def only(run: Path) -> Path:
    """Leave one checkpoint of a run, and return it."""
    kept = newest(run)
    for path in (run / "checkpoints").iterdir():
        if path != kept:
            shutil.rmtree(path)
    return kept


def sealed(checkpoint: Path) -> None:
    """Write the manifest anew, as whoever can write the files can do too."""
    (checkpoint / MANIFEST_FILE).unlink()
    write_manifest(checkpoint, {})


def edit(path: Path, **changes: Any) -> None:
    """Change values of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- checkpoints of a run: .metadata, shards, progress.json


def _bad_metadata(content: bytes, resumed: bool, words: str) -> Case:
    def made(shop: Workshop) -> tuple[list[str], str]:
        run = shop.run()
        checkpoint = only(run)
        payload = content or pickle.dumps(Payload(shop.mark))
        (checkpoint / ".metadata").write_bytes(payload)
        sealed(checkpoint)
        return (shop.train(run) if resumed else ["export", str(run), str(shop.out)]), words

    return made


for _resumed in (False, True):
    _how = "resumed" if _resumed else "exported"
    CASES[f"metadata with a payload, {_how}"] = _bad_metadata(b"", _resumed, r"\.metadata.*posix\.mkdir.*nothing")
    CASES[f"metadata that is empty, {_how}"] = _bad_metadata(b"\n", _resumed, r"\.metadata cannot be read")
    CASES[f"metadata of something else, {_how}"] = _bad_metadata(pickle.dumps([1]), _resumed, r"\.metadata.*list")
    CASES[f"metadata that calls eval, {_how}"] = _bad_metadata(
        b"cbuiltins\neval\n(S'1'\ntR.", _resumed, r"\.metadata.*builtins\.eval"
    )


def _payload_as_bytes(resumed: bool) -> Case:
    """An entry that PyTorch's planner would unpickle without restriction, where the model has a tensor."""

    def made(shop: Workshop) -> tuple[list[str], str]:
        run = shop.run()
        checkpoint = only(run)
        path = checkpoint / ".metadata"
        metadata: Metadata = pickle.loads(path.read_bytes())
        name = next(name for name in metadata.state_dict_metadata if name.startswith("model."))
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
        assert metadata.storage_data is not None
        index = next(index for index in metadata.storage_data if index.fqn == name)
        shard = checkpoint / "__0_0.distcp"
        offset = shard.stat().st_size
        with shard.open("ab") as file:
            torch.save(Payload(shop.mark), file)
        stored = metadata.storage_data.pop(index)
        stored.offset, stored.length = offset, shard.stat().st_size - offset
        metadata.storage_data[type(index)(name)] = stored
        path.write_bytes(pickle.dumps(metadata))
        sealed(checkpoint)
        return (shop.train(run) if resumed else ["export", str(run), str(shop.out)]), "BytesStorageMetadata"

    return made


CASES["a shard with a payload in place of a tensor, exported"] = _payload_as_bytes(False)
CASES["a shard with a payload in place of a tensor, resumed"] = _payload_as_bytes(True)


def _bad_storage(change: Callable[[Any], None], words: str) -> Case:
    def made(shop: Workshop) -> tuple[list[str], str]:
        run = shop.run()
        checkpoint = only(run)
        metadata: Metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
        change(metadata)
        (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
        sealed(checkpoint)
        return ["export", str(run), str(shop.out)], words

    return made


def _elsewhere(metadata: Any) -> None:
    for stored in metadata.storage_data.values():
        stored.relative_path = "../step_00000001/__0_0.distcp"


def _no_storage(metadata: Any) -> None:
    metadata.storage_data = None


def _other_sizes(metadata: Any) -> None:
    for stored in metadata.state_dict_metadata.values():
        stored.size = torch.Size([7, 7])
        stored.chunks[0].sizes = torch.Size([7, 7])


CASES["metadata that refers to a file elsewhere"] = _bad_storage(_elsewhere, "none of a checkpoint's own")
CASES["metadata without storage"] = _bad_storage(_no_storage, r"\.metadata cannot be read")
CASES["metadata of tensors of another size"] = _bad_storage(_other_sizes, "cannot be read|no checkpoint that can")


@case
def shard_that_is_a_pickle_with_a_payload(shop: Workshop) -> tuple[list[str], str]:
    run = shop.run()
    checkpoint = only(run)
    size = (checkpoint / "__0_0.distcp").stat().st_size
    content = pickle.dumps(Payload(shop.mark), protocol=2)
    (checkpoint / "__0_0.distcp").write_bytes(content * (size // len(content) + 1))
    sealed(checkpoint)
    return ["export", str(run), str(shop.out)], "no checkpoint that can be read"


@case
def shards_with_a_payload_in_torchs_own_format(shop: Workshop) -> tuple[list[str], str]:
    run = shop.run()
    checkpoint = only(run)
    metadata: Any = pickle.loads((checkpoint / ".metadata").read_bytes())
    torch.save(Payload(shop.mark), checkpoint / "__0_0.distcp")
    for stored in metadata.storage_data.values():
        stored.offset, stored.length = 0, (checkpoint / "__0_0.distcp").stat().st_size
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    sealed(checkpoint)
    return shop.train(run), "is of another model, or damaged .*Weights only"


def _bad_progress(text: str | dict[str, Any], words: str) -> Case:
    """A progress.json that is not a run's, behind a manifest that says it is: in all checkpoints of a run."""

    def made(shop: Workshop) -> tuple[list[str], str]:
        run = shop.run()
        path = only(run) / "progress.json"
        if isinstance(text, str):
            path.write_text(text)
        else:
            edit(path, **text)
        sealed(path.parent)
        return shop.train(run), words

    return made


_SETTINGS = {"compiled": False, "threads": 1, "precision": "float32"}
_WATCH: dict[str, Any] = {"recent_norms": [], "skipped_steps": [], "num_faults": 0}
_OTHERS: dict[str, Any] = {"Validation": {}, "LayerMeasurements": {}, "Metrics": {}}
for _name, _text, _words in (
    ("no JSON", "{", "progress.json cannot be read"),
    ("no UTF-8", '"\\ud800', "progress.json cannot be read"),
    ("a list", "[]", "progress.json must be an object, not"),
    ("nothing", "{}", "progress.json lacks"),
    ("deep nesting", DEEP, "nested too deeply"),
    ("nesting that Python can read", f'{{"step": {NESTED}}}', "nested too deeply"),
    ("a number of 5000 digits", f'{{"step": {HUGE}}}', "more than 64 bits"),
    ("a number of 400 digits", f'{{"step": {LARGE}}}', "more than 64 bits"),
    ("a word for the step", {"step": "three"}, "step must be a whole number, not 'three'"),
    ("infinity for the step", {"step": float("inf")}, "step must be a whole number, not inf"),
    ("a step below zero", {"step": -1}, "must not be negative"),
    ("another step", {"step": 2}, "of step 2"),
    ("true for the tokens", {"weight": True}, "weight must be a whole number, not True"),
    ("a list for the settings", {"settings": [False, 1]}, "settings must be an object, not"),
    ("unknown settings", {"settings": _SETTINGS | {"dream": 1}}, "settings.* has the unknown dream"),
    ("a word for a decision", {"settings": _SETTINGS | {"compiled": "no"}}, "compiled must be true or false, not 'no'"),
    ("a billion threads", {"settings": _SETTINGS | {"threads": 10**9}}, "threads must be"),
    ("an unknown precision", {"settings": _SETTINGS | {"precision": "float8"}}, "precision"),
    ("no threads", {"settings": _SETTINGS | {"threads": 0}}, "threads must be"),
    ("words for norms", {"callbacks": _OTHERS | {"FaultWatch": _WATCH | {"recent_norms": ["a"]}}}, "recent_norms"),
    (
        "null for steps to skip",
        {"callbacks": _OTHERS | {"FaultWatch": _WATCH | {"skipped_steps": None}}},
        "skipped_steps",
    ),
    ("a number for what judges", {"callbacks": 3}, "callbacks must be an object, not 3"),
    ("a list for a callback", {"callbacks": {"FaultWatch": []}}, "FaultWatch in progress.json is no JSON object"),
):
    CASES[f"progress.json with {_name}"] = _bad_progress(_text, _words)


# --- files of a run


def _bad_file(name: str, text: str, words: str, *, finished: bool = False) -> Case:
    def made(shop: Workshop) -> tuple[list[str], str]:
        run = shop.copy("run") if finished else shop.run()
        (run / name).write_text(text)
        return shop.train(run), words

    return made


for _name, _text in (("no JSON", "{"), ("deep nesting", DEEP), ("a huge number", f'{{"steps": {HUGE}}}')):
    CASES[f"recipe.json with {_name}"] = _bad_file("recipe.json", _text, "recipe.json is not a valid recipe")
    CASES[f"metrics.jsonl with {_name}"] = _bad_file("metrics.jsonl", _text + "\n", "metrics.jsonl is damaged")
CASES["recipe.json that is a list"] = _bad_file("recipe.json", "[1]", "recipe.json is not a valid recipe")
CASES["metrics.jsonl with a word for the step"] = _bad_file("metrics.jsonl", '{"step": "x"}\n', "metrics.jsonl is dam")
CASES["metrics.jsonl of numbers alone"] = _bad_file("metrics.jsonl", "5\n", "metrics.jsonl is damaged", finished=True)
CASES["metrics.jsonl with a word for the tokens"] = _bad_file(
    "metrics.jsonl", '{"step": 4, "tokens": "many"}\n', "metrics.jsonl is damaged", finished=True
)


# --- convert: weight maps, pickles


def _bad_map(text: str, words: str, name: str = "model.safetensors.index.json") -> Case:
    def made(shop: Workshop) -> tuple[list[str], str]:
        folder = shop.copy("published")
        (folder / "model.safetensors").unlink()  # a whole file is read instead, as transformers does
        (folder / name).write_text(text)
        return ["convert", str(folder), str(shop.out), "--placement", "pre"], words

    return made


for _name, _text, _words in (
    ("no JSON", "{", "index.json cannot be read"),
    ("deep nesting", DEEP, "nested too deeply"),
    ("a huge number", HUGE, "more than 64 bits"),
    ("a list", "[]", "has no weight_map"),
    ("a list of files", '{"weight_map": ["model.safetensors"]}', "has no weight_map"),
    ("no files", '{"weight_map": {}}', "has no weight_map"),
    ("a number for a file", '{"weight_map": {"a": 3}}', "names 3"),
    ("a file elsewhere", '{"weight_map": {"a": "../model/model.safetensors"}}', "no file of weights beside it"),
    ("a file that is not weights", '{"weight_map": {"a": "config.json"}}', "no file of weights beside it"),
    ("a missing file", '{"weight_map": {"a": "model-2.safetensors"}}', "model-2.safetensors does not exist"),
):
    CASES[f"weight map with {_name}"] = _bad_map(_text, _words)


@case
def weight_map_of_a_file_that_is_no_safetensors(shop: Workshop) -> tuple[list[str], str]:
    folder = shop.copy("published")
    (folder / "model.safetensors").unlink()
    (folder / "one.safetensors").write_text("no tensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    return ["convert", str(folder), str(shop.out), "--placement", "pre"], "one.safetensors is damaged"


def _as_bin(folder: Path, state: object, **options: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin", **options)


def _payload_in_weights(command: str, *, old_format: bool = False) -> Case:
    def made(shop: Workshop) -> tuple[list[str], str]:
        folder = shop.copy("published")
        state: dict[str, Any] = AutoModelForCausalLM.from_pretrained(shop.sources / "model").state_dict()
        state["payload"] = Payload(shop.mark)
        _as_bin(folder, state, _use_new_zipfile_serialization=not old_format)
        arguments = command.format(folder=folder, out=shop.out, text=shop.corpus).split()
        return arguments, "pytorch_model.bin|published cannot be opened"

    return made


CONVERT = "convert {folder} {out} --placement pre"
CASES["a payload in pytorch_model.bin, converted"] = _payload_in_weights(CONVERT)
CASES["a payload in an old pytorch_model.bin, converted"] = _payload_in_weights(CONVERT, old_format=True)


def _bad_bin(content: bytes, words: str = "pytorch_model.bin is damaged") -> Case:
    def made(shop: Workshop) -> tuple[list[str], str]:
        folder = shop.copy("published")
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)
        return CONVERT.format(folder=folder, out=shop.out).split(), words

    return made


CASES["pytorch_model.bin that is empty"] = _bad_bin(b"")
CASES["pytorch_model.bin that is text"] = _bad_bin(b"version https://git-lfs.github.com/spec/v1\n")
CASES["pytorch_model.bin that is half a zip"] = _bad_bin(b"PK\x03\x04" + bytes(100))
CASES["pytorch_model.bin of numbers"] = _bad_bin(pickle.dumps({"a": 1}, protocol=2))


@case
def pytorch_model_bin_that_is_another_zip(shop: Workshop) -> tuple[list[str], str]:
    folder = shop.copy("published")
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as file:
        file.writestr("notes.txt", "no tensors")
    return CONVERT.format(folder=folder, out=shop.out).split(), "pytorch_model.bin is damaged"


@case
def pytorch_model_bin_of_sparse_tensors(shop: Workshop) -> tuple[list[str], str]:
    folder = shop.copy("published")
    _as_bin(folder, {"model.norm.weight": torch.eye(3).to_sparse()})
    return CONVERT.format(folder=folder, out=shop.out).split(), "does not hold a state dict"


def _bad_published_config(words: str, **changes: Any) -> Case:
    def made(shop: Workshop) -> tuple[list[str], str]:
        folder = shop.copy("published")
        edit(folder / "config.json", **changes)
        return CONVERT.format(folder=folder, out=shop.out).split(), words

    return made


CASES["convert a million layers"] = _bad_published_config(
    "num_hidden_layers 1000000, but there are only .* weight tensors", num_hidden_layers=1_000_000
)
CASES["convert a huge vocabulary"] = _bad_published_config("config.json|of the wrong shape", vocab_size=10**15)
CASES["convert a padding token outside the vocabulary"] = _bad_published_config("pad_token_id", pad_token_id=10**6)


@case
def convert_a_config_nested_too_deeply(shop: Workshop) -> tuple[list[str], str]:
    folder = shop.copy("published")
    (folder / "config.json").write_text(DEEP)
    return CONVERT.format(folder=folder, out=shop.out).split(), "config.json.*nested too deeply"


# --- prepared data


def _bad_manifest(words: str, **changes: Any) -> Case:
    def made(shop: Workshop) -> tuple[list[str], str]:
        folder = shop.copy("prepared")
        edit(folder / MANIFEST_FILE, **changes)
        arguments = ["train", "--text", str(folder), *TINY, "--steps", "1", "--out", str(shop.folder / "run")]
        return arguments, words

    return made


CASES["prepared data with settings that are a list"] = _bad_manifest("manifest.json is damaged", settings=[])
CASES["prepared data without settings"] = _bad_manifest("manifest.json is damaged", settings={})
CASES["prepared data without statistics"] = _bad_manifest("manifest.json is damaged", statistics={})
CASES["prepared data with words for counts"] = _bad_manifest(
    "manifest.json is damaged",
    statistics={"train": {}, "validation": {}, "skipped": {}, "examples": {}, "duplicates_removed": "x"},
)
CASES["prepared data with a list of files"] = _bad_manifest("manifest.json is unreadable", files=[1])
CASES["prepared data with a file elsewhere"] = _bad_manifest("has changed|missing", files={"../config.json": "0"})


def _bad_healing(name: str, text: str, words: str) -> Case:
    """A work folder of `prune --heal` whose records are not those of a healing."""

    def made(shop: Workshop) -> tuple[list[str], str]:
        folder = shop.out.with_name("out.healing")
        shutil.copytree(shop.sources / "stock", folder / "pruned")
        for file in ("pruned/pruning.json", "healing.json"):
            (folder / file).write_text("{}")
        (folder / name).write_text(text)
        arguments = ["prune", str(shop.sources / "stock"), str(shop.out), "--layers", "2", "--heal", str(shop.corpus)]
        return [*arguments, "--cache", str(shop.cache)], words

    return made


for _name, _text in (("deep nesting", DEEP), ("a huge number", f'{{"loss_before": {LARGE}}}'), ("nothing", "{}")):
    CASES[f"pruning.json with {_name}"] = _bad_healing("pruned/pruning.json", _text, "out.healing is damaged")
    CASES[f"healing.json with {_name}"] = _bad_healing("healing.json", _text, "out.healing is damaged")


# --- recipes


def _bad_recipe(command: str, words: str) -> Case:
    return lambda shop: (command.format(out=shop.out, cache=shop.cache, corpus=shop.corpus).split(), words)


DEEPEST = "--model.num-hidden-layers 1000000"
CASES["train a million layers"] = _bad_recipe(f"train {DEEPEST} --text {{corpus}} --out {{out}}", "at most 10,000")
CASES["compare a million layers"] = _bad_recipe(f"compare {DEEPEST} --text {{corpus}} --out {{out}}", "at most 10,000")
CASES["estimate a million layers"] = _bad_recipe(f"estimate {DEEPEST}", "at most 10,000")
CASES["schemes of a million layers"] = _bad_recipe("schemes pre --num-layers 1000000", "--num-layers must be")


# --- models: for every command that opens one

OPENING = {
    "generate": "generate {folder} hello --max-new-tokens 2",
    "diagnose": "diagnose {folder} --text {corpus} --out {out}",
    "prune": "prune {folder} {out} --layers 2",
    "prune and heal": "prune {folder} {out} --layers 2 --heal {corpus} --cache {cache}",
    "remove-norm": "remove-norm {folder} {out} --text {corpus} --steps 40 --cache {cache}",
    "convert --to": "convert {folder} {out} --to hf",
}


def _bad_model(command: str, spoil: Callable[[Path, Workshop], None], words: str) -> Case:
    def made(shop: Workshop) -> tuple[list[str], str]:
        folder = shop.copy("model" if command == "convert --to" else "stock")
        spoil(folder, shop)
        given = {"folder": folder, "out": shop.out, "corpus": shop.corpus, "cache": shop.folder / "cache"}
        return [part.format(**given) for part in OPENING[command].split()], words

    return made


def _payload(folder: Path, shop: Workshop) -> None:
    _as_bin(folder, {"model.norm.weight": torch.ones(32), "payload": Payload(shop.mark)})


def _weight_map(text: str) -> Callable[[Path, Workshop], None]:
    def spoil(folder: Path, _: Workshop) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return spoil


def _no_safetensors(folder: Path, _: Workshop) -> None:
    (folder / "model.safetensors").write_text("no tensors")


def _own_code(folder: Path, shop: Workshop) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(shop.mark)!r})\nclass Config: ...\nclass Model: ...\n")
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(folder / "config.json", model_type="evil", auto_map=names)


def _config(**changes: Any) -> Callable[[Path, Workshop], None]:
    return lambda folder, _: edit(folder / "config.json", **changes)


def _config_text(text: str) -> Callable[[Path, Workshop], None]:
    def spoil(folder: Path, _: Workshop) -> None:
        (folder / "config.json").write_text(text)

    return spoil


MODELS: dict[str, tuple[Callable[[Path, Workshop], None], str]] = {
    "a payload in pytorch_model.bin": (_payload, "cannot be opened|is damaged|pytorch_model.bin"),
    "a weight map that is no JSON": (_weight_map("{"), "cannot be opened|is damaged|index.json"),
    "a weight map that is a list": (_weight_map("[]"), "cannot be opened|is damaged|index.json"),
    "a weight map nested too deeply": (_weight_map(DEEP), "cannot be opened|is damaged|index.json"),
    "a weight map of a missing file": (
        _weight_map('{"metadata": {}, "weight_map": {"a": "b.safetensors"}}'),
        "cannot be opened|b.safetensors",
    ),
    "weights that are no safetensors": (_no_safetensors, "cannot be opened|is damaged|model.safetensors"),
    "code of its own": (_own_code, "code|evil"),
    "a padding token outside the vocabulary": (_config(pad_token_id=10**6), "pad_token_id|Padding_idx"),
    "a million layers": (_config(num_hidden_layers=1_000_000), "num_hidden_layers|layers"),
    "a huge vocabulary": (_config(vocab_size=10**12), "config.json|vocab_size"),
    "a config nested too deeply": (_config_text(DEEP), "config.json|cannot be opened"),
    "a config with a huge number": (
        _config_text('{"model_type": "llama", "vocab_size": ' + HUGE + "}"),
        "cannot be opened|config.json",
    ),
}
EVERYWHERE = {"a payload in pytorch_model.bin", "code of its own", "a million layers"}
"""Tried with every command, every day; the others, which go through the same function, with one of them."""

for _command in OPENING:
    for _name, (_spoil, _words) in MODELS.items():
        if _command == "prune and heal" and "layers" not in _name and "payload" not in _name:
            continue  # it opens a model as prune does
        if _command != "generate" and _name not in EVERYWHERE:
            SLOW.add(f"{_name}, {_command}")
        CASES[f"{_name}, {_command}"] = _bad_model(_command, _spoil, _words)


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def check(shown: str, words: str) -> None:
    """One message, at the end, that says what is expected."""
    assert "Traceback" not in shown
    lines = shown.splitlines()
    messages = [
        line for line in lines if line.startswith("mixln: ") and "the checkpoint before it is tried" not in line
    ]
    assert len(messages) == 1, shown
    assert lines[-1] == messages[0]
    assert re.search(words, messages[0]), messages[0]


@pytest.fixture
def shop(tmp_path: Path, corpus: Path, sources: Path) -> Workshop:
    return Workshop(tmp_path, corpus, sources / "cache", sources)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
)
def test_bad_input(name: str, shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = CASES[name](shop)
    before = snapshot(shop.folder)
    status = main(arguments)
    shown = capsys.readouterr()
    assert status == 2, shown.err
    check(shown.err, words)
    assert "Traceback" not in shown.out
    assert not shop.mark.exists(), "the payload was run"
    assert not shop.out.exists() or not any(shop.out.iterdir())
    after = snapshot(shop.folder)
    # a lock, and what a run records of itself when it begins, are no output
    new = {
        path for path in after.keys() - before.keys() if not path.endswith((".lock", "recipe.json", "precision.json"))
    }
    assert not new
    assert all(after.get(path) == size for path, size in before.items())


def test_there_are_sixty_cases() -> None:
    assert len(CASES) >= 60


# --- the machine: full disks, threads, memory; and commands as a process of their own


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: what a library writes fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def prepare(shop: Workshop, cache: Path) -> list[str]:
    return ["data", "prepare", "--text", str(shop.corpus), "--cache", str(cache), *TINY, "--workers", "1"]


@pytest.mark.parametrize("kilobytes", [4, 8, 12, 16, 20, 28, 40])
@pytest.mark.parametrize("how", ["a small disk", "files that may not grow"])
def test_no_room_for_the_tokenizer(
    how: str, kilobytes: int, shop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = shop.folder / "cache"
    with small_disk(cache, kilobytes) if how == "a small disk" else largest_file(kilobytes * 1024):
        status = main(prepare(shop, cache))
        left = [path for path in cache.glob("data/*") if path.is_dir() and not path.name.endswith(".partial")]
    shown = capsys.readouterr()
    assert status == 2, shown.err
    check(shown.err, "No space left on device|File too large")
    assert not left


@contextmanager
def no_threads() -> Iterator[None]:
    """Ask for threads with stacks that no machine can give: starting one fails as where none is allowed."""
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_no_thread_can_be_started(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    run = shop.run()
    with no_threads():
        assert main(shop.train(run)) == 2
    check(capsys.readouterr().err, r"no further thread.*ulimit -u")


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3, 5])
def test_a_limit_on_threads(threads: int, shop: Workshop) -> None:
    """The system's own limit, which does not hold for root: so as another user, who may read what root may."""
    if shutil.which("setpriv") is None or shutil.which("prlimit") is None or os.geteuid() != 0:
        pytest.skip("needs root, setpriv and prlimit")
    home = shop.folder / "home"
    home.mkdir()
    home.chmod(0o777)
    keep = "-all,+dac_override,+dac_read_search"
    user = 50_000 + os.getpid() % 10_000  # the limit is on all processes of a user, those of tests beside this one too
    command = ["setpriv", "--reuid", f"{user}", "--regid", "65534", "--clear-groups", f"--inh-caps={keep}"]
    command += [f"--ambient-caps={keep}", f"--bounding-set={keep}", "prlimit", f"--nproc={threads}"]
    arguments = [*shop.train(home / "run"), "--cache", str(home / "cache")]
    finished = subprocess.run(
        [*command, sys.executable, "-m", "mixln", *arguments],
        env={**os.environ, "HOME": str(home), "USER": "nobody", "MPLCONFIGDIR": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 2, finished.stderr
    check(finished.stderr, "no further thread or process can be started")


def _no_memory_in_python() -> None:
    bytearray(1 << 60)


def _no_memory_in_torch() -> None:
    torch.empty(1 << 55, dtype=torch.uint8)


def _panic() -> None:
    raise type("PanicException", (BaseException,), {})(
        "The global thread pool has not been initialized.: ThreadPoolBuildError { kind: IOError(Os { code: 11, kind: "
        'WouldBlock, message: "Resource temporarily unavailable" }) }'
    )


def _rust() -> None:
    raise Exception("No space left on device (os error 28)")


def _open_files() -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/some/file")


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (_no_memory_in_python, "not enough memory"),
        (_no_memory_in_torch, "not enough memory"),
        (_panic, "no further thread"),
        (_rust, "No space left on device. To fix this, make room"),
        (_open_files, "Too many open files. Allow more open files"),
    ],
)
def test_what_the_machine_refuses(
    refused: Callable[[], None], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> int:
        refused()
        return 0

    monkeypatch.setattr(cli, "call", run)
    assert main(["generate", "a", "b"]) == 2
    check(capsys.readouterr().err, words)


def test_an_error_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> int:
        raise RuntimeError("a mistake that mentions memory")

    monkeypatch.setattr(cli, "call", run)
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["generate", "a", "b"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["metadata with a payload, resumed", "a payload in pytorch_model.bin, converted", "weight map with deep nesting"],
)
def test_bad_input_in_a_process_of_its_own(name: str, shop: Workshop) -> None:
    arguments, words = CASES[name](shop)
    finished = subprocess.run(
        [sys.executable, "-m", "mixln", *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 2, finished.stderr
    check(finished.stderr, words)
    assert not shop.mark.exists()
