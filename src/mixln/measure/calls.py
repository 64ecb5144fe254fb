"""How a block was called, so that it can be called again and see what it saw."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from mixln.errors import InputError

_HIDDEN_STATES = "hidden_states"

Contents = dict[int, tuple[Any, Any]]
"""By the identity of a container: itself, kept alive, and a shallow copy of it as it was at some time."""

Working = dict[int, Any]
"""By the identity of a container: the copy of it that takes its place in a replay."""


class BlockCall(NamedTuple):
    """One call of one block.

    What model code keeps between blocks often lies in a container that all of them are handed, such as the dictionary
    of keys and values that layers share. A block may write to it, so what was in it is kept as it was at the call.

    Attributes:
        args: its arguments, hidden states among them.
        kwargs: its keyword arguments.
        contents: of the dictionaries and lists in them, when the block was called.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    contents: Contents

    @classmethod
    def seen(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BlockCall:
        """The call with these arguments, as they are now."""
        contents: Contents = {}
        for value in (*args, *kwargs.values()):
            _keep(value, contents)
        return cls(args, kwargs, contents)

    @property
    def hidden_states(self) -> Tensor:
        """The block's input x_l, (batch, sequence, hidden) as a rule."""
        if not self.args and _HIDDEN_STATES not in self.kwargs:
            raise InputError(
                f"a block is called with {', '.join(self.kwargs) or 'nothing'}, and not with {_HIDDEN_STATES} or a "
                "first argument: its input is unknown. Name another list of blocks with `stack`"
            )
        found = self.args[0] if self.args else self.kwargs[_HIDDEN_STATES]
        if not isinstance(found, Tensor):
            raise InputError(
                f"a block is called with a {type(found).__name__} first, not with a tensor of hidden states. Name "
                "another list of blocks with `stack`"
            )
        return found

    def by_name(self) -> dict[int | str, Any]:
        """The arguments, by position or name."""
        return {**dict(enumerate(self.args)), **self.kwargs}

    def with_hidden_states(
        self, hidden_states: Tensor, others: Mapping[int | str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other hidden states, and `others` in place of the arguments with these names."""
        changed = {**(others or {}), 0 if self.args else _HIDDEN_STATES: hidden_states}
        return (
            tuple(changed.get(place, value) for place, value in enumerate(self.args)),
            {name: changed.get(name, value) for name, value in self.kwargs.items()},
        )

    def working_copies(self) -> Working:
        """Fresh copies of all containers, as they were when the block was called."""
        working: Working = {}
        for container, _ in self.contents.values():
            self._fresh(container, working)
        return working

    def replay(self, block: nn.Module, hidden_states: Tensor, working: Working | None = None) -> Tensor:
        """The output of `block` on other hidden states, all else (mask, position embeddings ...) as recorded.

        Args:
            block: to run.
            hidden_states: in place of the recorded.
            working: the containers that the replayed blocks share; those that are not in it are added. None: all are
                fresh, as they were at the call.
        """
        working = {} if working is None else working
        args, kwargs = self.with_hidden_states(hidden_states)
        args = tuple(self._fresh(value, working) for value in args)
        return block_output(block(*args, **{name: self._fresh(value, working) for name, value in kwargs.items()}))

    def _fresh(self, value: Any, working: Working) -> Any:
        if id(value) in working:
            return working[id(value)]
        if type(value) is tuple:
            parts = tuple(self._fresh(part, working) for part in value)
            return parts if any(new is not old for new, old in zip(parts, value, strict=True)) else value
        if id(value) not in self.contents:
            return value
        fresh = working[id(value)] = copy.copy(self.contents[id(value)][1])
        for place, part in _parts(fresh):
            fresh[place] = self._fresh(part, working)
        return fresh


def _keep(value: Any, contents: Contents) -> None:
    if type(value) is tuple:
        for part in value:
            _keep(part, contents)
    elif isinstance(value, (MutableMapping, MutableSequence)) and id(value) not in contents:
        kept = copy.copy(value)
        contents[id(value)] = (value, kept)
        for _, part in _parts(kept):
            _keep(part, contents)


def _parts(container: Any) -> list[tuple[Any, Any]]:
    return list(container.items() if isinstance(container, MutableMapping) else enumerate(container))


Key = TypeVar("Key")


@contextmanager
def watched(
    modules: Iterable[tuple[Key, nn.Module]], see: Callable[[Key, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Show what modules are given and what they return, each with its key, inside the `with` block."""

    def watcher(key: Key) -> Callable[..., None]:
        return lambda _module, args, output: see(key, args, output)

    with ExitStack() as hooks:
        for key, module in modules:
            hooks.enter_context(module.register_forward_hook(watcher(key)))
        yield


def block_output(output: Any) -> Tensor:
    """The hidden states in what a block returns: a tensor, or a tuple or list that begins with it.

    Raises:
        InputError: it is none of them.
    """
    found = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(found, Tensor):
        raise InputError(
            f"a block returns a {type(found).__name__}, not a tensor of hidden states. Name another list of blocks "
            "with `stack`"
        )
    return found
