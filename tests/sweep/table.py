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

Made by the sweep in `tests/sweep`, which finds every class of these kinds in transformers' own mappings, builds it
small from its config (4 layers, random weights so large that each layer matters, on the CPU), and tries on it:

- **diagnose**: removal of each layer, of runs of two and of each sublayer, swap and repeat, beside an independent
  reference that shares no code with mixln: a changed copy, run afresh row by row, without cache or padding. They agree
  to 1e-6 of the loss in float64, and to 1e-5 in models that run in float32 only.
- **prune**: layers taken out with `mixln prune`; the folder is opened with the class that it came from, has all of its
  parameters but the layer's, the outputs of the model with that block bypassed, and the same greedy text with a cache
  as without one.
- **heal** (causal language models): a training step; the folder is opened with its class, and the reported loss is
  that of its documents one by one.

`right`: all of it was. `refused`: mixln says in one line what cannot be done. None gave a wrong number or a traceback.
Where mixln asks which list of blocks is meant (`--stack`), the sweep names one.

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
    lines = ["| transformers | classes | | right | refused | not built |", "| --- | --- | --- | --- | --- | --- |"]
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
    parts = [f"## {title}\n", f"Right in everything ({len(right)} of {len(results)}): {_names(right, others)}.\n"]
    if rest:
        parts.append("| | diagnose | prune | heal | why |\n| --- | --- | --- | --- | --- |")
        parts += [f"| {r.name} | {' | '.join(r.status(check) for check in CHECKS)} | {_reasons(r)} |" for r in rest]
        parts.append("")
    if unbuilt:
        parts.append("Not built small, so not tried:\n")
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
