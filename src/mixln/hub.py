"""The Hugging Face hub: all access to it goes through `hub_access`, which needs no network for what the cache holds.

Without a network the libraries of Hugging Face try again for half a minute, for every file. So it is found out first
whether the hub answers at all; if it does not, they are told to read their cache alone.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from mixln.announce import announce
from mixln.errors import InputError

Kind = Literal["model", "tokenizer", "dataset", "task"]

_SECONDS = 3.5
"""To connect, where the user has not said how long requests may take (`HF_HUB_ETAG_TIMEOUT`)."""

_KEPT_SECONDS = 30.0
"""How long it is remembered that the hub does not answer; that it does is remembered to the end."""


class _Found(NamedTuple):
    """Why the hub cannot be reached, or None; and how long that is taken for granted."""

    reason: str | None
    until: float


_found: _Found | None = None


@contextmanager
def hub_access(name: str, kind: Kind = "model", *, local: bool | None = None) -> Iterator[None]:
    """Open something of the hub inside the block: by the network if the hub answers, else from the cache alone.

    A slow network is not refused: the time to connect is limited (to 3.5 seconds, or to `HF_HUB_ETAG_TIMEOUT` if the
    user has set it), not the time to answer. With `HF_HUB_OFFLINE` the network is not tried.

    Args:
        name: on the hub, or a folder.
        kind: what it is.
        local: whether it needs no network; None: if it is a folder.

    Raises:
        InputError: the hub does not answer, and the cache does not have what is needed.
    """
    # the data of a task may be local files, which nothing but loading it can tell
    reason = _reason_to_stay_offline() if kind == "task" else require_access(name, kind, local=local)
    if reason is None:
        yield
        return
    with _offline():
        try:
            yield
        except Exception as error:
            if not _is_missing(error, kind):
                raise
            raise InputError(_refusal(name, kind, reason)) from error
    if kind != "task":
        announce(("hub", f"{reason}: {name} comes from the cache"))


def require_access(name: str, kind: Kind = "model", *, local: bool | None = None) -> str | None:
    """Make sure, before anything is imported or computed, that the hub answers or that the cache holds a name.

    Args:
        name: on the hub, or a folder.
        kind: what it is.
        local: as in `hub_access`.

    Returns:
        Why the cache alone can be read, in words; None: there is no need to, or the hub answers.

    Raises:
        InputError: the hub does not answer, and the cache holds nothing of this name.
    """
    local = Path(name).expanduser().is_dir() if local is None else local
    reason = None if local else _reason_to_stay_offline()
    if reason is not None and not _is_in_cache(name, kind):
        raise InputError(_refusal(name, kind, reason))
    return reason


def _refusal(name: str, kind: Kind, reason: str) -> str:
    from huggingface_hub import constants

    cached = constants.HF_HUB_CACHE
    if kind == "dataset":
        what, instead = f"the dataset {name} cannot be read", "Give the path of local files"
    elif kind == "task":
        what, instead = f"the data of the task {name} cannot be loaded", "Give a task whose data are local files"
    else:
        what, instead = f"there is no folder {name}, and no {kind} of that name can be fetched", "Give a folder"
    return (
        f"{what}: {reason}, and the cache ({cached}) does not have it. {instead}, connect to the network, or copy the "
        "cache of a machine that has it to the folder that HF_HOME names"
    )


def _reason_to_stay_offline() -> str | None:
    """Why only the cache can be read, in words; None: the hub answers."""
    global _found
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the network is not tried"
    if _found is None or time.monotonic() > _found.until:
        reason = _try_to_connect()
        _found = _Found(reason, math.inf if reason is None else time.monotonic() + _KEPT_SECONDS)
    return _found.reason


def _try_to_connect() -> str | None:
    """Connect to the hub, or to the proxy before it; return why that does not work, None if it does."""
    from huggingface_hub import constants

    endpoint = urlsplit(constants.ENDPOINT)
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _SECONDS)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(endpoint.scheme) or proxies.get("all")
    if proxy and endpoint.hostname and not urllib.request.proxy_bypass(endpoint.hostname):
        asked = urlsplit(proxy if "://" in proxy else f"//{proxy}", scheme="http")
        where = f"the proxy {asked.hostname}, which {endpoint.hostname} is to be reached through,"
    else:
        asked, where = endpoint, str(endpoint.hostname)
    port = asked.port or (443 if asked.scheme == "https" else 80)
    reason = _first_connection(asked.hostname or "", port, seconds)
    return reason and f"{where} cannot be reached ({reason})"


def _first_connection(host: str, port: int, seconds: float) -> str | None:
    """Connect to the first address of a host that answers, all tried at once, and return why none does, or None.

    In threads, since the time that looking up a name takes cannot be limited.
    """
    answers: SimpleQueue[str | list[Any] | None] = SimpleQueue()

    def resolve() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            answers.put(error.strerror or str(error))

    def connect(family: int, address: Any) -> None:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(seconds)
                connection.connect(address)
            answers.put(None)
        except OSError as error:
            answers.put(error.strerror or str(error))

    deadline, waiting, reason = time.monotonic() + seconds, 1, ""
    threading.Thread(target=resolve, daemon=True).start()
    while waiting:
        try:
            found = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            return f"no answer within {seconds:g} seconds; HF_HUB_ETAG_TIMEOUT sets how many are waited for"
        waiting -= 1
        if found is None:
            return None
        if isinstance(found, str):
            reason = found
            continue
        for family, _, _, _, address in found:
            threading.Thread(target=connect, args=(family, address), daemon=True).start()
            waiting += 1
    return reason


def _is_in_cache(name: str, kind: Kind) -> bool:
    """Whether the cache holds something of this name; of a task's data, whose names are not known, anything."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if kind in ("model", "tokenizer"):
        return any(Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model")).glob("snapshots/*"))
    # without importing `datasets`, which takes seconds: it writes OWNER/CamelName as OWNER___camel_name
    folder = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")).expanduser()
    wanted = name.replace("/", "").replace("_", "").lower()
    prepared = (path.name for path in folder.glob("*___*"))
    return any(kind == "task" or found.replace("_", "").lower() == wanted for found in prepared)


@contextmanager
def _offline() -> Iterator[None]:
    """Inside the block, the libraries of Hugging Face read their caches alone, as with HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    settings: Any = sys.modules.get("datasets.config")
    before_in_datasets = before if settings is None else settings.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    if settings is not None:
        settings.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        if (settings := sys.modules.get("datasets.config")) is not None:  # it may have been imported meanwhile
            settings.HF_HUB_OFFLINE = before_in_datasets


def _is_missing(error: BaseException, kind: Kind) -> bool:
    """Whether an error is that something is not in the cache; of a model's files it has no number of the system."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(one, LocalEntryNotFoundError | ConnectionError) for one in causes):
        return True
    return kind in ("model", "tokenizer") and any(isinstance(one, OSError) and one.errno is None for one in causes)
