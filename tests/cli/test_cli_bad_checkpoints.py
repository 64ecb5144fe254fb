"""Checkpoint folders that are damaged, lie about themselves, or bring code along: one message, and nothing is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_llama

from mixln.cli import main
from mixln.data import PreparedData


@pytest.fixture(scope="module")
def llama(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), data.tokenizer, 3)


def changed_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


class _Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran-from-a-pickle",)


def with_payload(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload()))


def with_archived_payload(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": _Payload()}, folder / "pytorch_model.bin")


def with_own_code(folder: Path) -> None:
    text = "import pathlib\npathlib.Path('ran-from-a-folder').touch()\n"
    for name in ("configuration_own", "modeling_own"):
        (folder / f"{name}.py").write_text(text)
    auto_map = {"AutoConfig": "configuration_own.OwnConfig"}
    auto_map |= dict.fromkeys(("AutoModel", "AutoModelForCausalLM"), "modeling_own.OwnForCausalLM")
    changed_config(model_type="own", architectures=["OwnForCausalLM"], auto_map=auto_map)(folder)


def with_own_class(folder: Path) -> None:
    with_own_code(folder)
    changed_config(model_type="llama")(folder)


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_a_tensor(folder: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_nan(folder: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_an_index(index: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no name of a class": (changed_config(architectures=[None]), "[None]"),
    "a pickle with a payload": (with_payload, "nothing was run"),
    "an archive with a payload": (with_archived_payload, "nothing was run"),
    "code of its own": (with_own_code, "own code, which is never run"),
    "a class of its own": (with_own_class, "own code, which is never run"),
    "weights cut off": (cut_off, "is damaged or cut off"),
    "a tensor missing": (without_a_tensor, "model.layers.1.mlp.up_proj.weight"),
    "a million layers": (changed_config(num_hidden_layers=1_000_000), "One of its sizes (num_hidden_layers, say)"),
    "a vast vocabulary": (changed_config(vocab_size=10**12), "One of its sizes"),
    "vast layers": (changed_config(intermediate_size=10**9), "One of its sizes"),
    "padding outside the vocabulary": (changed_config(pad_token_id=10**6), "adding"),
    "layers in words": (changed_config(num_hidden_layers="three"), "num_hidden_layers"),
    "a list of sizes": (changed_config(hidden_size=[8, 8]), "hidden_size"),
    "negative layers": (changed_config(num_hidden_layers=-1), "with 0 of these layers"),
    "a class of another type": (changed_config(architectures=["MistralForCausalLM"]), "MistralForCausalLM"),
    "a layer less, said of the base": (
        changed_config(num_hidden_layers=2, architectures=["LlamaModel"]),
        "with 2 of these layers",
    ),
    "a layer less": (changed_config(num_hidden_layers=2), "with 2 of these layers"),
    "no heads": (changed_config(num_attention_heads=0), "cannot be opened"),
    "another activation": (changed_config(hidden_act="nothing"), "nothing"),
    "an index that is a list": (with_an_index([1]), "is damaged"),
    "an index of what is not there": (
        with_an_index({"weight_map": {"a": "b.safetensors"}}),
        "does not exist, although the index names it",
    ),
    "an index that leads out": (
        with_an_index({"weight_map": {"a": "../b.safetensors"}}),
        "which is no file of weights beside it",
    ),
}

COMMANDS = {
    "generate": "generate {folder} a --max-new-tokens 2",
    "diagnose": "diagnose {folder} --out {out} --only growth --text {corpus}",
    "prune": "prune {folder} {out} --layers 2",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", DAMAGE)
def test_a_bad_checkpoint_is_one_message(
    case: str,
    command: str,
    llama: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damage, message = DAMAGE[case]
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    damage(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    out = tmp_path / "out"
    given = COMMANDS[command].format(folder=folder, out=out, corpus=corpus).split()
    assert main(given) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert shown[-1].startswith("mixln: ")
    assert message in shown[-1]
    assert "Traceback" not in "\n".join(shown)
    assert not list(tmp_path.glob("ran-from*"))
    assert command == "diagnose" or not out.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_weight_that_is_no_number_is_named(
    command: str, llama: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    with_nan(folder)
    assert main(COMMANDS[command].format(folder=folder, out=tmp_path / "out", corpus=corpus).split()) == 2
    assert "model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err
