"""python -m tests.sweep.table 5.24.0=newest.jsonl 5.10.0=lowest.jsonl: supported-models.md and expected.json."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.sweep.sweep import CHECKS, Result, read_results

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "supported-models.md"
EXPECTED = Path(__file__).parent / "expected.json"

_TITLES = {
    "causal": "Causal language models",
    "masked": "Encoders with a head for masked tokens",
    "base": "Base models of text, and of text and images",
    "vision": "Base models of images",
    "image_classification": "Image classification",
    "image_text": "Images and text to text",
    "sequence_classification": "Classification of text",
}

_HEAD = """# Supported models

This page lists which classes of transformers mixln can diagnose, prune and heal. The sweep in `tests/sweep` makes it.
It finds every class of these kinds in transformers' own mappings, and builds each from its config as a small model: 4
layers, on the CPU, with random weights that are so large that each layer matters. Then it tries:

- **diagnose**: it removes each layer, runs of two layers and each sublayer, and swaps and repeats layers. An
  independent reference does the same: it shares no code with mixln, changes a copy of the model, and runs it row by
  row, without cache or padding. The two agree to 1e-6 of the loss in float64, and to 1e-5 in models that run only in
  float32.
- **prune**: it removes layers with `mixln prune`. The folder opens with the class that it came from. It has all
  parameters except the layer's, gives the outputs of the model with that block bypassed, and generates the same
  greedy text with a cache as without.
- **heal** (causal language models): it makes a training step. The folder opens with its class, and the reported loss
  is that of its documents one by one.

The results:

- `right`: all of this holds.
- `refused`: mixln says in one line what it cannot do. The column "why" has the message.
- `not built`: the sweep could not build a small model of the class, so it was not tried.

No class gave a wrong number or a traceback. Where mixln asks which list of blocks to use (`--stack`), the sweep names
one.

To make the page again:

```bash
{commands}
```
"""


def main(arguments: Sequence[str]) -> None:
    """Write the table and what the tests expect."""
    versions = {version: read_results(Path(path)) for version, path in (given.split("=", 1) for given in arguments)}
    DOCS.write_text(document(versions), encoding="utf-8")
    EXPECTED.write_text(expected(versions), encoding="utf-8")


def expected(versions: dict[str, list[Result]]) -> str:
    """The statuses of each class and check over all versions, a line for each class."""
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for result in (result for results in versions.values() for result in results):
        for check in CHECKS:
            if (status := result.status(check)) != "-":
                statuses = found[result.name].setdefault(check, [])
                found[result.name][check] = sorted({*statuses, status})
    lines = [f"{json.dumps(name)}: {json.dumps(checks)}" for name, checks in sorted(found.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def document(versions: dict[str, list[Result]]) -> str:
    """The page of the documentation."""
    newest = next(iter(versions))
    commands = "\n".join(
        f"python -m tests.sweep --results {version}.jsonl  # with transformers {version}" for version in versions
    )
    table = f"python -m tests.sweep.table {' '.join(f'{version}={version}.jsonl' for version in versions)}"
    parts = [_HEAD.format(commands=f"{commands}\n{table}"), _counts(versions)]
    others = {version: {result.name: result for result in results} for version, results in versions.items()}
    for family, title in _TITLES.items():
        results = sorted((r for r in versions[newest] if r.family == family), key=lambda r: r.name.lower())
        parts.append(_family(title, results, {v: names for v, names in others.items() if v != newest}))
    return "\n".join(parts)


def _counts(versions: dict[str, list[Result]]) -> str:
    lines = [
        "| transformers | classes | check | right | refused | not built |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for version, results in versions.items():
        for check in CHECKS:
            tried = [result.status(check) for result in results if result.status(check) != "-"]
            counts = (sum(status == wanted for status in tried) for wanted in ("right", "refused", "not built"))
            lines.append(f"| {version} | {len(tried)} | {check} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"


def _family(title: str, results: list[Result], others: dict[str, dict[str, Result]]) -> str:
    right = [r for r in results if {r.status(check) for check in CHECKS} <= {"right", "-"}]
    rest = [r for r in results if r not in right and r.status("diagnose") != "not built"]
    unbuilt = [r for r in results if r.status("diagnose") == "not built"]
    parts = [
        f"## {title}\n",
        f"All results are `right` ({len(right)} of {len(results)} classes): {_names(right, others)}.\n",
    ]
    if rest:
        parts.append("| class | diagnose | prune | heal | why |\n| --- | --- | --- | --- | --- |")
        parts += [f"| {r.name} | {' | '.join(r.status(check) for check in CHECKS)} | {_reasons(r)} |" for r in rest]
        parts.append("")
    if unbuilt:
        parts.append("Not built as a small model, so not tried:\n")
        parts += [f"- {r.name}: {_plain(r.outcomes[0].detail)}" for r in unbuilt]
        parts.append("")
    return "\n".join(parts)


def _names(results: list[Result], others: dict[str, dict[str, Result]]) -> str:
    return ", ".join(
        result.name + "".join(f" (not in {v})" for v, names in others.items() if result.name not in names)
        for result in results
    )


def _reasons(result: Result) -> str:
    reasons: dict[str, list[str]] = defaultdict(list)
    for check in CHECKS:
        found = result.of(check)
        if found is not None and found.status not in ("right", "left out"):
            reasons[_plain(found.detail)].append(check)
    return "; ".join(f"{' and '.join(checks)}: {reason}" for reason, checks in reasons.items())


def _plain(text: str, most: int = 240) -> str:
    """One line that no table is broken by."""
    text = re.sub(r"(/[\w.-]+)+/(?=whole\b|out\b|healed\b)", "", text)  # of the folder that it was tried in
    text = re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= most else text[: most - 4] + " ..."


if __name__ == "__main__":
    main(sys.argv[1:])
