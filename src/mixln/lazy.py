"""Packages whose names are imported when they are first used, and what is to be done once a module is imported."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package that lists its names as imports for type checkers alone.

        if TYPE_CHECKING:
            from mixln.training.loop import train as train
        else:
            __getattr__, __dir__ = lazy_names(__name__)

    Importing the package then imports nothing. A name is imported at its first use, by the line that type checkers
    read; `__all__` is the list of these names, unless the package has its own. A module of the package is an attribute
    too, as if the package had imported it.
    """

    @functools.cache
    def origins() -> dict[str, tuple[str, str]]:
        import ast
        import pkgutil

        source = pkgutil.get_data(package, "__init__.py") or b""
        blocks = [
            node.body
            for node in ast.parse(source).body
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        ]
        return {
            alias.asname or alias.name: (str(line.module), alias.name)
            for block in blocks
            for line in block
            if isinstance(line, ast.ImportFrom)
            for alias in line.names
        }

    def get(name: str) -> Any:
        if name in origins():
            module, original = origins()[name]
            value = getattr(importlib.import_module(module), original)
        elif name == "__all__":
            value = sorted(origins())
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *origins()})


def after_import(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call an action with the module of this name: now if it is imported, else right after its code has run."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if module is None:
        sys.meta_path.insert(0, _AfterImport(name, action))
    elif spec is not None and getattr(spec, "_initializing", False):
        spec.__class__ = _RunningSpec
        vars(spec).setdefault("waiting", []).append(action)
    else:
        action(module)


class _RunningSpec(ModuleSpec):
    """The spec of a module whose code is running. Python sets `_initializing` to False when that has ended."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            for action in vars(self).pop("waiting", ()):
                after_import(self.name, action)  # waits for the next import, if this one has failed


class _AfterImport:
    """A finder that lets the others find the module, and adds the action to what running its code does."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._action = action
        self._searching = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name or self._searching:
            return None
        self._searching = True  # another of this kind asks all finders too
        try:
            found = (finder.find_spec(name, path, target) for finder in list(sys.meta_path))
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_act(module: ModuleType) -> None:
            vars(spec.loader).pop("exec_module", None)  # a loader may have other modules to load
            run(module)
            self._action(module)
            sys.meta_path.remove(self)  # an action that fails makes the import fail, and is tried again with the next

        spec.loader.exec_module = run_and_act
        return spec
