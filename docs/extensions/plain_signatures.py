"""Types of parameters as a person reads them: without what `Annotated` adds for the command line, in full names.

Names that a module imports for type checkers alone are found by reading its imports, not by importing them.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import FunctionType, MethodType
from typing import Any

from mixln.signatures import parameter_types


def simplify(_app: Any, documented: Any, _is_method: bool) -> None:
    """Rewrite the annotations of a function of mixln (`autodoc-before-process-signature`)."""
    for function in _functions(documented):
        if not function.__module__.startswith("mixln"):
            continue
        if function.__module__.startswith("mixln.commands"):
            named_values(inspect.unwrap(function))  # is kept: read before what it is read from changes
        names = imported_names(function.__module__)
        signature = inspect.signature(function, follow_wrapped=False)
        parameters = [one.replace(annotation=_plain(one.annotation, names)) for one in signature.parameters.values()]
        returned = _plain(signature.return_annotation, names)
        function.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": returned}
        # where defaults are kept as they are written, autodoc has put one there
        vars(function)["__signature__"] = signature.replace(parameters=parameters, return_annotation=returned)


def _plain(annotation: Any, names: dict[str, str]) -> Any:
    return plain(annotation, names) if isinstance(annotation, str) else annotation


@cache
def named_values(function: Callable[..., Any]) -> dict[str, tuple[str, ...]]:
    """What `{names}` stands for in the text of each parameter of a function that is a command."""
    return {
        name: extra["names"]
        for name, hint in parameter_types(function).items()
        for extra in getattr(hint, "__metadata__", ())
        if "names" in extra
    }


def complete_text(_app: Any, _what: str, _name: str, documented: Any, _options: Any, lines: list[str]) -> None:
    """Show commands in `Example:` as code, and fill in `{names}` (`autodoc-process-docstring`)."""
    if not isinstance(documented, FunctionType) or not documented.__module__.startswith("mixln.commands"):
        return
    names = named_values(inspect.unwrap(documented))
    current = ""
    for number, line in enumerate(lines):
        if match := re.match(r" +(\w+): ", line):
            current = match[1]
        lines[number] = line.replace("{names}", ", ".join(names.get(current, ())))
    examples = [number for number, line in enumerate(lines) if line.startswith("    mixln ")]
    for number in reversed(examples):
        lines[number : number + 1] = ["    .. code-block:: bash", "", f"    {lines[number]}", ""]


def plain(annotation: str, names: dict[str, str]) -> str:
    """An annotation without `Annotated` and `Unpack`, its names in full.

    Args:
        annotation: as it stands in the source.
        names: full names by those that the module uses.
    """
    return ast.unparse(_Plain(names).visit(ast.parse(annotation, mode="eval").body))


@cache
def imported_names(module: str) -> dict[str, str]:
    """The full names of what a module imports from elsewhere, and of what it defines."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.ClassDef):
            found[node.name] = f"{module}.{node.name}"
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found |= {one.id: f"{module}.{one.id}" for one in node.targets if isinstance(one, ast.Name)}
    return found


class _Plain(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        name = node.value.id if isinstance(node.value, ast.Name) else ""
        if name == "Annotated" and isinstance(node.slice, ast.Tuple):
            return self.visit(node.slice.elts[0])
        if name == "Unpack":
            return self.visit(node.slice)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        full = self.names.get(node.id, node.id)
        short = full.removeprefix("collections.abc.").removeprefix("typing.")
        return ast.copy_location(ast.parse(short, mode="eval").body, node)


def _functions(documented: Any) -> Iterator[Callable[..., Any]]:
    """A function and those that it wraps; of a class its constructor."""
    if isinstance(documented, type):
        documented = documented.__init__
    while isinstance(documented, FunctionType | MethodType):
        documented = getattr(documented, "__func__", documented)
        yield documented
        documented = getattr(documented, "__wrapped__", None)
