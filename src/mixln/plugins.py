"""Code of others that registers schemes, modifiers, architectures and measures, loaded by its file or as a package."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mixln.errors import InputError

ENTRY_POINTS = "mixln.plugins"
"""The group of entry points under which an installed package names the module that registers what it has."""


@dataclass(frozen=True)
class Plugin:
    """A plugin that this process has loaded.

    Attributes:
        name: of its file, or of its entry point and package with the version.
        sha256: of its file; empty: it is of an installed package.
    """

    name: str
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.name} (sha256 {self.sha256[:12]})" if self.sha256 else self.name


_LOADED: dict[str, Plugin] = {}


def loaded_plugins() -> list[Plugin]:
    """Return the plugins that this process has loaded, in that order."""
    return list(_LOADED.values())


def load_plugin(path: str | Path) -> Plugin:
    """Run a Python file that registers schemes, modifiers, architectures or measures, which every command then knows::

        # my_schemes.py
        from mixln.placement import BlockPlan, SublayerPlan, NORM, register_scheme

        @register_scheme("late")
        def late(depth: int, num_layers: int) -> BlockPlan:
            ...

        mixln.load_plugin("my_schemes.py")
        mixln.Placement.parse("late")

    On the command line this is `mixln train --plugin my_schemes.py`. A file is run once in a process. Runs that are
    made with it say so in `recipe.json`.

    Args:
        path: the file.

    Returns:
        What is written down of it.

    Raises:
        InputError: it is no Python file, or it raises an error.
    """
    where = f"`plugin={path}`"
    file, content = read_python_file(path, where, "Give the file that registers your schemes")
    key = str(file.resolve())
    if key not in _LOADED:
        run_python_file(file, f"mixln_plugin_{file.stem}", where)
        _LOADED[key] = Plugin(file.name, hashlib.sha256(content).hexdigest())
    return _LOADED[key]


def read_python_file(path: str | Path, where: str, fix: str) -> tuple[Path, bytes]:
    """Return a Python file and its content.

    Args:
        path: of it.
        where: a user has named it, for the message.
        fix: what to do if it cannot be read.

    Raises:
        InputError: it is no Python file, or cannot be read.
    """
    file = Path(path).expanduser()
    if file.suffix != ".py":
        raise InputError(f"{where} is no Python file: give a file whose name ends in .py")
    try:
        return file, file.read_bytes()
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}. {fix}") from error


def run_python_file(file: Path, name: str, where: str) -> ModuleType:
    """Run a Python file as a module, and return it.

    Args:
        file: of it.
        name: of the module.
        where: a user has named the file, for the message.

    Raises:
        InputError: it raises an error.
    """
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{where} raises {first_line(error)}{line_of(error, file)}. Correct it") from error
    return module


def load_installed_plugins() -> list[Plugin]:
    """Import what installed packages name as entry points of the group `mixln.plugins`.

    Raises:
        InputError: one cannot be imported; names the package.
    """
    from importlib.metadata import entry_points

    found: list[Plugin] = []
    for point in entry_points(group=ENTRY_POINTS):
        key = f"{point.name} = {point.value}"
        if key not in _LOADED:
            package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
            try:
                point.load()
            except (Exception, SystemExit) as error:
                raise InputError(
                    f"the plugin {point.name} of the package {package} raises {first_line(error)}. Uninstall the "
                    "package, or install a version of it that goes with this mixln"
                ) from error
            _LOADED[key] = Plugin(f"{point.name} of {package}")
        found.append(_LOADED[key])
    return found


def first_line(error: BaseException) -> str:
    """Return an error in one line, with its class."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {(text.splitlines() or ['no message'])[0][:300].rstrip('.')}"


def line_of(error: BaseException, file: Path) -> str:
    """Return where in a file an error was raised."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno
    return "" if line is None else f" (line {line})"
