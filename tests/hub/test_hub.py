"""The Hugging Face hub: refused at once where there is no network, and not where the network is slow."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pytest
import torch
from huggingface_hub import constants
from tiny import save_tiny_llama

from mixln import hub
from mixln.cli import main
from mixln.data import PreparedData, open_corpus
from mixln.errors import InputError
from mixln.models.load import load_causal_lm, load_config, load_tokenizer
from mixln.sources import describe_corpus, describe_model


@pytest.fixture(autouse=True)
def nothing_found_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_found", None)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@pytest.fixture
def no_network(closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that does not answer, and an empty cache: its folder."""
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path


def put_in_cache(folder: Path, cache: Path, name: str) -> None:
    """As the hub's library does; https://huggingface.co/docs/huggingface_hub/guides/manage-cache."""
    repository = cache / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")


@pytest.fixture(scope="module")
def llama(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), data.tokenizer, 2)


@pytest.mark.parametrize(
    "command",
    [
        "diagnose org/name",
        "prune org/name {tmp}/out --drop 1",
        "remove-norm org/name {tmp}/out",
        "generate org/name text",
        "train --data.tokenizer org/name --out {tmp}/out",
        "train --text c4 --data.max-tokens 1000 --out {tmp}/out",
        "compare --text hf:org/name --data.max-tokens 1000 --out {tmp}/out",
        "data prepare --text hf:org/name --data.max-tokens 1000",
    ],
)
def test_without_a_network_a_name_on_the_hub_is_one_message(
    command: str, no_network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.format(tmp=no_network).split()) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "Retrying" not in error
    (message,) = (line for line in error.splitlines() if line.startswith("mixln: "))
    assert "127.0.0.1 cannot be reached (Connection refused)" in message
    assert f"the cache ({no_network / 'hub'}) does not have it" in message
    assert not (no_network / "out" / "runs").exists()


def test_a_model_in_the_cache_opens_without_a_network(llama: Path, no_network: Path) -> None:
    put_in_cache(llama, no_network, "org/name")
    (model, tokenizer), (expected, _) = load_causal_lm("org/name"), load_causal_lm(str(llama))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), expected.parameters(), strict=True))
    assert tokenizer("text").input_ids == load_tokenizer(str(llama))("text").input_ids
    assert describe_model("org/name").startswith("org/name")
    assert not constants.HF_HUB_OFFLINE
    with pytest.raises(InputError, match="no model of that name can be fetched"):
        load_config("org/other")


def test_a_model_of_which_the_cache_lacks_the_weights_is_refused(llama: Path, no_network: Path) -> None:
    put_in_cache(llama, no_network, "org/name")
    (no_network / "hub" / "models--org--name" / "snapshots" / "c0ffee" / "model.safetensors").unlink()
    load_config("org/name")
    with pytest.raises(InputError, match=r"org/name.* cannot be reached .* does not have it"):
        load_causal_lm("org/name")


def test_a_dataset_in_the_cache_is_read_without_a_network(no_network: Path) -> None:
    file, cache = no_network / "texts.jsonl", no_network / "datasets"
    file.write_text("".join(json.dumps({"text": f"document {number}"}) + "\n" for number in range(5)))
    datasets.load_dataset("json", data_files=str(file), cache_dir=str(cache))
    (prepared,) = (cache / "json").glob("*/*/*/")
    # as if it had been fetched from the hub
    folder = cache / "org___my_data" / "default" / "0.0.0" / "c0ffee"
    shutil.copytree(prepared, folder)
    for one in folder.glob("json-*"):
        one.rename(one.with_name(one.name.replace("json-", "my_data-")))
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(
        json.dumps({**info, "builder_name": "parquet", "dataset_name": "my_data"})
    )
    assert list(open_corpus("hf:org/MyData").documents()) == [f"document {number}" for number in range(5)]
    with pytest.raises(InputError, match="the dataset org/other cannot be read"):
        list(open_corpus("hf:org/other").documents())


@pytest.mark.usefixtures("no_network")
def test_hf_hub_offline_is_respected(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_try_to_connect", None)  # it would fail
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, so the network is not tried"):
        load_config("org/name")
    assert constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("no_network")
def test_a_network_that_answers_late_is_not_refused(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server}")
    assert hub.require_access("org/name") is None
    with hub.hub_access("org/name"):
        assert not constants.HF_HUB_OFFLINE
    assert describe_model("org/name") == "org/name, a name on the hub"
    assert describe_corpus("hf:org/name:en@main") == "hf:org/name:en@main, the dataset org/name on the hub"


@pytest.mark.usefixtures("no_network")
def test_the_hub_is_looked_for_where_the_proxy_is(
    server: int, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server}")
    assert hub.require_access("org/name") is None
    monkeypatch.setattr(hub, "_found", None)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(InputError, match=r"the proxy 127.0.0.1, which hub.invalid is to be reached through, cannot be"):
        hub.require_access("org/name")


def test_one_address_that_answers_is_enough(server: int, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an IPv6 route that leads nowhere."""
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in (closed_port, server)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
    assert hub._first_connection("hub.invalid", 80, 60.0) is None


def test_a_name_server_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()

    def wait(*_: Any, **__: Any) -> list[Any]:
        end.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    try:
        assert "no answer within 0.05 seconds" in str(hub._first_connection("hub.invalid", 80, 0.05))
    finally:
        end.set()
