"""Runs a notebook that is written as MyST Markdown, cell by cell, as Jupyter does: `python notebook.py PAGE.md`.

What the last expression of a cell gives is shown, as rich data if it has such, and as text. Standard output gets a
line of JSON for each cell: what it has printed, and what was shown.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import sys
import types
from pathlib import Path
from typing import Any


def cells(text: str) -> list[str]:
    """The code of the cells."""
    return re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shown(value: Any) -> dict[str, str]:
    """What a notebook shows of a value, by its kind."""
    if value is None:
        return {}
    data = {"text/plain": repr(value)}
    if (bundle := getattr(value, "_repr_mimebundle_", None)) is not None:
        data |= bundle(include=None, exclude=None)
    if (html := getattr(value, "_repr_html_", None)) is not None:
        data["text/html"] = html()
    return data


def run(page: Path) -> None:
    """Run all cells in one `__main__`, and print what they show."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    for number, code in enumerate(cells(page.read_text(encoding="utf-8")), start=1):
        name = f"{page.name}, cell {number}"
        *statements, last = ast.parse(code, name).body
        if not isinstance(last, ast.Expr):
            statements.append(last)
        printed, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            exec(compile(ast.Module(statements, []), name, "exec"), vars(module))
            value = None
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), name, "eval"), vars(module))
            data = shown(value)
        print(json.dumps({"printed": printed.getvalue(), "errors": errors.getvalue(), "shown": data}), flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
