"""The first use of each word of the glossary on a page links to it, with the meaning under the pointer.

Pages stay plain Markdown, readable in the repository: nobody marks the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes

_NO_LINKS = (
    nodes.literal,
    nodes.literal_block,
    nodes.title,
    nodes.reference,
    nodes.term,
    nodes.rubric,
    nodes.caption,
    nodes.math,
    nodes.image,
)
_GLOSSARY = "concepts/glossary"

_ORDINARY = frozenset({"control", "gain", "gate", "head", "plan", "row", "shard", "spread", "step"})
"""Words that pages use in their ordinary meaning too."""


def link_terms(app: Any, tree: nodes.document, page: str) -> None:
    """Put the links into a page (`doctree-resolved`)."""
    if page == _GLOSSARY or page.startswith(("project/", "reference/python", "reference/commands")):
        return
    meanings = _meanings(app)
    if not meanings:
        return
    found = app.env.get_domain("std")._terms
    words = sorted(meanings.keys() - _ORDINARY, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, words))})(?:s)?(?![\w-])", re.IGNORECASE)
    target = app.builder.get_relative_uri(page, _GLOSSARY)
    seen: set[str] = set()
    for text in list(_prose(tree)):
        parts = list(_split(text, pattern, seen))
        if len(parts) == 1:
            continue
        made: list[nodes.Node] = []
        for part, word in parts:
            if not word:
                made.append(nodes.Text(part))
                continue
            link = nodes.reference("", part, refuri=f"{target}#{found[word][1]}", internal=True)
            link["classes"] += ["glossary-term"]
            link["reftitle"] = meanings[word]
            made.append(link)
        if text.parent is not None:
            text.parent.replace(text, made)


def _prose(tree: nodes.document) -> Iterator[nodes.Text]:
    for text in tree.findall(nodes.Text):
        node = text.parent
        while node is not None and not isinstance(node, _NO_LINKS):
            node = node.parent
        if node is None:
            yield text


def _split(text: nodes.Text, pattern: re.Pattern[str], seen: set[str]) -> Iterator[tuple[str, str]]:
    """The text in parts, each with the word of the glossary that it is, or with nothing."""
    whole, start = text.astext(), 0
    for match in pattern.finditer(whole):
        word = match[1].lower()
        if word in seen:
            continue
        seen.add(word)
        if match.start() > start:
            yield whole[start : match.start()], ""
        yield match[0], word
        start = match.end()
    if start == 0:
        yield whole, ""
    elif start < len(whole):
        yield whole[start:], ""


def _meanings(app: Any) -> dict[str, str]:
    """The words of the glossary in lower case, with the first sentence of what each means."""
    if not hasattr(app, "_glossary_meanings"):
        tree = app.env.get_doctree(_GLOSSARY)
        app._glossary_meanings = {}
        for item in tree.findall(nodes.definition_list_item):
            meaning = " ".join(item.children[-1].astext().split())
            for term in item.findall(nodes.term):
                app._glossary_meanings[term.astext().lower()] = meaning
    return app._glossary_meanings
