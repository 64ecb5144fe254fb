"""What the site needs beside the pages: the reference of the commands, and links to files outside docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mixln.cli import build_parsers
from mixln.commands import COMMANDS, is_group

_HEAD = """# Commands

Each command of the command line with all of its options, as `mixln COMMAND --help` prints them.

"""


_OUTSIDE = {
    "../CONTRIBUTING.md": "project/contributing.md",
    "../CHANGELOG.md": "project/changes.md",
    "../benchmarks/README.md": "project/benchmarks.md",
}
"""Files that the pages link to, as they are read in the repository, and the page that includes each of them."""


def replace_links(_app: Any, _page: str, text: list[str]) -> None:
    """Make links to files outside docs/ links to the pages that include them."""
    for path, page in _OUTSIDE.items():
        text[0] = text[0].replace(f"]({path}", f"](/{page}")


def replace_included_links(_app: Any, _path: Path, _parent: str, text: list[str]) -> None:
    """Make links of a file outside docs/, which a page includes, links to pages; what has none is a name alone."""
    text[0] = text[0].replace("](docs/", "](/")
    text[0] = re.sub(r"\[([^\]]+)\]\((?!https?:|/|#)[^)]+\)", r"`\1`", text[0])


def write_commands(app: Any) -> None:
    """Write `reference/commands.md`."""
    parsers = build_parsers()
    sections = [
        f"## `mixln {name}`\n\n```text\n{parsers[name].format_help().rstrip()}\n```\n"
        for name in COMMANDS
        if not is_group(name)
    ]
    page = Path(app.srcdir) / "reference" / "commands.md"
    text = _HEAD + "\n".join(sections)
    if not page.exists() or page.read_text(encoding="utf-8") != text:  # an unchanged page is not built again
        page.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("builder-inited", write_commands)
    app.connect("source-read", replace_links)
    app.connect("include-read", replace_included_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
