"""The cells of notebooks that are written as MyST Markdown, shown as code."""

from __future__ import annotations

from typing import Any

from sphinx.directives.code import CodeBlock


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_directive("code-cell", CodeBlock)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
