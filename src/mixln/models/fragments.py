"""Long texts in fragments: cut only where the tokens of the fragments, one after another, are those of the whole text.

The tokenizers library holds 100 to 200 bytes for each character of the text that it is given, because it tracks the
origin of every byte and every token. So a text of 20 MB takes gigabytes, and fragments of it do not.

**Where a cut is safe.** Before a space that follows a visible ASCII character, if
- the normalizer changes neither of the two and joins nothing across them (Unicode normal forms, lower case, the
  character map of SentencePiece);
- the pre-tokenizer always splits there, and finds its next words from there on alone. A pattern that is matched from
  left to right does, if no match continues past a visible character with a space, and if it looks ahead over
  white space only: the fragment before the cut does not end in white space;
- no added token contains white space or takes up the white space around it;
- a prefix for the beginning of a text (`add_prefix_space`, Metaspace) is not added to a text that begins with a space.
The model merges within the words of the pre-tokenizer only, so equal words are equal tokens.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mixln.errors import InputError

FRAGMENT_CHARACTERS = 100_000
"""A text is cut at the first safe place after so many characters."""

LONGEST_CHARACTERS = 10_000_000
"""The most characters that are tokenised as one: about 2 GB of memory."""

_SAFE_PLACE = re.compile(r"[!-~](?= )")

_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Precompiled"})
_SPLITTERS = frozenset({"WhitespaceSplit", "Whitespace", "BertPreTokenizer"})
_REFINEMENTS = frozenset({"Digits", "Punctuation"})
_PATTERNS = frozenset(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("", "{1,3}")
)
"""The patterns of Qwen 2 and Llama 3: no alternative has a space behind a visible character."""


def cut(text: str, *, is_safe: bool) -> list[str]:
    """Return a text in fragments.

    Args:
        text: of any length.
        is_safe: whether it may be cut (see `has_safe_places`).

    Raises:
        InputError: more than 10 million characters would have to be tokenised as one.
    """
    fragments: list[str] = []
    start = 0
    while is_safe and len(text) - start > FRAGMENT_CHARACTERS:
        place = _SAFE_PLACE.search(text, start + FRAGMENT_CHARACTERS)
        if place is None:
            break
        fragments.append(text[start : place.end()])
        start = place.end()
    fragments.append(text[start:] if start else text)
    longest = max(map(len, fragments))
    if longest > LONGEST_CHARACTERS:
        reason = "a part of it has no spaces" if is_safe else "this tokenizer needs it whole"
        raise InputError(
            f"{longest:,} characters in a row must be tokenised together ({reason}), more than the "
            f"{LONGEST_CHARACTERS:,} that fit into memory; split this document"
        )
    return fragments


def has_safe_places(definition: str) -> bool:
    """Return whether a tokenizer is known to give the same tokens of a text that is cut in safe places.

    Args:
        definition: of the backend (the content of `tokenizer.json`).
    """
    tokenizer: dict[str, Any] = json.loads(definition)
    steps = _steps(tokenizer["pre_tokenizer"], "pretokenizers")
    return (
        all(step["type"] in _NORMALIZERS for step in _steps(tokenizer["normalizer"], "normalizers"))
        and all(step["type"] == "ByteLevel" or step["type"] in _REFINEMENTS or _splits(step) for step in steps)
        and any(_splits(step) for step in steps)
        # special tokens are not looked for in documents
        and not any(_takes_white_space(token) for token in tokenizer["added_tokens"] if not token["special"])
    )


def _steps(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return [inner for one in step[name] for inner in _steps(one, name)] if step["type"] == "Sequence" else [step]


def _splits(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer splits at every safe place."""
    match step["type"]:
        case "ByteLevel":
            return step.get("use_regex", True)
        case "Metaspace":
            return step.get("split", True)
        case "Split":
            return step["pattern"].get("Regex") in _PATTERNS and step["behavior"] == "Isolated" and not step["invert"]
        case kind:
            return kind in _SPLITTERS


def _takes_white_space(token: dict[str, Any]) -> bool:
    return token["lstrip"] or token["rstrip"] or any(character.isspace() for character in token["content"])
