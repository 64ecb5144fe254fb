"""The device that a user has chosen for a piece of work; `mixln.device` finds the default. Imports nothing heavy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

_chosen: list[str] = []


def chosen_device() -> str | None:
    """Return what was chosen; None: nothing was."""
    return _chosen[-1] if _chosen else None


@contextmanager
def computing_on(device: str | None) -> Iterator[None]:
    """Make `mixln.device.default_device` this device, such as `cpu`, `cuda` or `cuda:1`. None: no change."""
    if device is None:
        yield
        return
    _chosen.append(device)
    try:
        yield
    finally:
        _chosen.pop()


def on_device(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Make a function compute on the device that its parameter `device` names; None: where it would anyway."""

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        device = kwargs.get("device")
        with computing_on(device if isinstance(device, str) else None):
            return function(*args, **kwargs)

    return wrapped
