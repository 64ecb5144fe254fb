"""Definitions out of several modules, with everything that they need, as the text of one module.

Begins with the names that are asked for, and follows every name that a definition mentions: within its module, or
through that module's imports from the bundled packages, re-exports included. What nobody mentions stays behind. The
text of a definition is left as it is, but for annotations that name something further down, which are put in quotes:
the one file has no `from __future__ import annotations`, under which strict dataclasses would check no types.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import groupby
from typing import TypeGuard

_WIDTH = 120


class BundleError(ValueError):
    """Definitions that cannot stand in one module; the message says which and why."""


@dataclass(frozen=True)
class Import:
    """One name that comes from outside of the bundled packages.

    Attributes:
        module: what is imported, or imported from.
        name: what is taken from it; None: the module itself.
        bound: the name that it gets.
    """

    module: str
    name: str | None
    bound: str

    @property
    def package(self) -> str:
        """The package that has to be installed."""
        return self.module.partition(".")[0]

    @property
    def line(self) -> str:
        """The statement that imports it."""
        if self.name is None:
            return f"import {self.module}" + ("" if self.bound == self.package else f" as {self.bound}")
        return f"from {self.module} import {self.name}" + ("" if self.bound == self.name else f" as {self.bound}")


@dataclass(frozen=True, eq=False)
class Statement:
    """A definition at the top level of a module: a function, a class or an assignment with the string below it."""

    module: str
    names: tuple[str, ...]
    node: ast.stmt
    first_line: int
    last_line: int


@dataclass(frozen=True)
class Bundle:
    """The result: the text, and what it is made of.

    Attributes:
        text: from the imports on.
        statements: in the order of the text.
        imports: what has to be installed.
    """

    text: str
    statements: tuple[Statement, ...]
    imports: frozenset[Import]


@dataclass
class _Module:
    name: str
    lines: list[str]
    docstring: str | None
    evaluates_annotations: bool = True
    statements: dict[str, Statement] = field(default_factory=dict)
    bundled: dict[str, tuple[str, str]] = field(default_factory=dict)
    imports: dict[str, Import] = field(default_factory=dict)


def bundle(roots: Sequence[tuple[str, str]], packages: Sequence[str]) -> Bundle:
    """Return the definitions of the roots, and of everything that they need from the packages, in one text.

    Args:
        roots: (module, name) of each definition that is asked for.
        packages: top-level packages whose definitions are taken over; what is from others is imported.

    Raises:
        BundleError: a module has no source, or two definitions have the same name, or a name is not to be found.
    """
    return _Bundler(packages).bundle(roots)


class _Bundler:
    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages
        self.modules: dict[str, _Module] = {}
        # the other modules that a module's definitions need, in the order in which they turn up
        self.needs: dict[str, dict[str, None]] = {}

    def bundle(self, roots: Sequence[tuple[str, str]]) -> Bundle:
        taken: dict[Statement, None] = {}
        imports: dict[Import, None] = {}
        waiting = [self.find(module, name) for module, name in roots]
        while waiting:
            statement = waiting.pop()
            if isinstance(statement, Import) or statement in taken:
                continue
            taken[statement] = None
            needed = self.needs.setdefault(statement.module, {})
            for name in _names(statement.node):
                found = self.look_up(statement.module, name)
                if isinstance(found, Import):
                    imports[found] = None
                elif found is not None:
                    needed |= {found.module: None} if found.module != statement.module else {}
                    waiting.append(found)
        statements = self.in_order(taken)
        _check_collisions(statements, imports)
        lines = sorted((one.line for one in imports), key=lambda line: (line.startswith("from"), line))
        text = "\n".join([*lines, "", self.body(statements)])
        return Bundle(text, tuple(statements), frozenset(imports))

    def module(self, name: str) -> _Module:
        if name not in self.modules:
            self.modules[name] = _read(name, self.packages)
        return self.modules[name]

    def find(self, module: str, name: str) -> Statement | Import:
        """Return a definition by a name that its module must have."""
        found = self.look_up(module, name)
        if found is None:
            raise BundleError(f"{name} is not defined at the top level of {module}")
        return found

    def look_up(self, module: str, name: str) -> Statement | Import | None:
        """Return what a name at the top level of a module means; None: nothing, so it is local or built in."""
        path = [(module, name)]
        while True:
            at, current = path[-1]
            read = self.module(at)
            if current in read.statements:
                if current != name:
                    raise BundleError(f"{module} imports {current} as {name}: import it by its own name")
                return read.statements[current]
            if current in read.imports:
                return read.imports[current]
            if current not in read.bundled:
                if len(path) == 1:
                    return None
                raise BundleError(f"{module} imports {name} from {at}, which does not define it")
            if read.bundled[current] in path or not read.bundled[current][1]:
                raise BundleError(f"{module} uses the module {name}: import from it what is used")
            path.append(read.bundled[current])

    def in_order(self, taken: dict[Statement, None]) -> list[Statement]:
        """Return the statements module by module, each module after those that it needs."""
        try:
            modules = list(TopologicalSorter(self.needs).static_order())
        except CycleError as error:
            raise BundleError(f"modules need each other: {', '.join(error.args[1])}") from error
        return sorted(taken, key=lambda statement: (modules.index(statement.module), statement.first_line))

    def body(self, statements: Sequence[Statement]) -> str:
        place = {statement: number for number, statement in enumerate(statements)}
        parts: list[str] = []
        for module, group in groupby(statements, key=lambda statement: statement.module):
            parts += [_section(self.modules[module]), *(self.text(statement, place) for statement in group)]
        return "\n\n".join(parts)

    def text(self, statement: Statement, place: dict[Statement, int]) -> str:
        module = self.modules[statement.module]
        lines = [line.encode() for line in module.lines]
        if not module.evaluates_annotations:
            # from the last to the first, so that positions stay true
            for annotation in sorted(
                _annotations(statement.node), key=lambda node: (node.lineno, node.col_offset), reverse=True
            ):
                found = [self.look_up(statement.module, name) for name in _names(annotation)]
                if any(isinstance(one, Statement) and place[one] >= place[statement] for one in found):
                    _quote(lines, annotation)
        kept = lines[statement.first_line - 1 : statement.last_line]
        return b"".join(kept).decode().rstrip() + "\n"


def _read(name: str, packages: Sequence[str]) -> _Module:
    try:
        module = importlib.import_module(name)
        source = inspect.getsource(module)
    except (ImportError, OSError, TypeError) as error:
        raise BundleError(f"the module {name} has no source file") from error
    tree, lines = ast.parse(source), source.splitlines(keepends=True)
    read = _Module(name, lines, ast.get_docstring(tree))
    # names that a package imports when they are asked for, it imports for type checkers as well
    body = [node for one in tree.body for node in (one.body if _is_for_type_checkers(one) else [one])]
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            read.evaluates_annotations = False
        elif isinstance(node, ast.ImportFrom):
            source_module = node.module or ""
            if node.level:
                source_module = importlib.util.resolve_name("." * node.level + source_module, module.__package__)
            for alias in node.names:
                bound = alias.asname or alias.name
                if source_module.partition(".")[0] in packages:
                    read.bundled[bound] = (source_module, alias.name)
                else:
                    read.imports[bound] = Import(source_module, alias.name, bound)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                if alias.name.partition(".")[0] in packages:
                    read.bundled[bound] = (alias.name, "")
                else:
                    read.imports[bound] = Import(alias.name, None, bound)
        else:
            statement = _statement(name, node, following, lines)
            for defined in statement.names:
                read.statements[defined] = statement
    return read


def _is_for_type_checkers(node: ast.stmt) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _statement(module: str, node: ast.stmt, following: ast.stmt | None, lines: Sequence[str]) -> Statement:
    names: tuple[str, ...] = ()
    first, last = node.lineno, node.end_lineno or node.lineno
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        names = (node.name,)
        first = min([first, *(decorator.lineno for decorator in node.decorator_list)])
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = tuple(found.id for target in targets for found in ast.walk(target) if isinstance(found, ast.Name))
        if (
            isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            last = following.end_lineno or last
    while first > 1 and lines[first - 2].startswith("#"):
        first -= 1
    return Statement(module, names, node, first, last)


def _names(node: ast.AST) -> list[str]:
    """Return the names that a piece of code mentions, each once, in order (a set's order changes between processes)."""
    return list(dict.fromkeys(found.id for found in ast.walk(node) if isinstance(found, ast.Name)))


def _annotations(node: ast.stmt) -> Iterator[ast.expr]:
    """Yield the annotations that Python evaluates when it reaches the statement: not those in a function's body."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
        yield from (one.annotation for one in every if one is not None and one.annotation is not None)
        if node.returns is not None:
            yield node.returns
    elif isinstance(node, ast.ClassDef):
        for child in node.body:
            yield from _annotations(child)
    elif isinstance(node, ast.AnnAssign):
        yield node.annotation


def _quote(lines: list[bytes], node: ast.expr) -> None:
    """Put an annotation in quotes, on one line if it stood on several."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    text = ast.unparse(node)
    quoted = repr(text) if '"' in text else f'"{text}"'
    first, last = node.lineno - 1, node.end_lineno - 1
    lines[last] = lines[first][: node.col_offset] + quoted.encode() + lines[last][node.end_col_offset :]
    lines[first:last] = [b""] * (last - first)


def _check_collisions(statements: Sequence[Statement], imports: dict[Import, None]) -> None:
    owners: dict[str, object] = {}
    for statement in statements:
        for name in statement.names:
            if hasattr(builtins, name):
                raise BundleError(f"{statement.module} defines {name}, which in other modules is Python's own")
            if owners.setdefault(name, statement) is not statement:
                raise BundleError(f"{name} is defined twice, once in {statement.module}: rename it there")
    for found in imports:
        if owners.setdefault(found.bound, found) != found:
            raise BundleError(f"the imported name {found.bound} (from {found.module}) has another meaning elsewhere")


def _section(module: _Module) -> str:
    title = f"# {f' {module.name} ':-^{_WIDTH - 2}}"
    text = [f"# {line}".rstrip() for line in (module.docstring or "").splitlines()]
    return "\n".join([title, *text, ""])
