"""What the site needs beside the pages: parts that the build writes into them, and links to files outside docs/.

A page has a line `<!-- build: NAME -->` where the build puts what `PARTS[NAME]` returns.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dataclass_tables import all_parts, describe, field_table, json_schema, nested
from gallery import photograph, write_gallery
from glossary_links import link_terms
from mixln.commands import COMMANDS, is_group
from mixln.commands.arguments import find_interface
from mixln.commands.help import help_page
from mixln.report import ComparisonResult, RunResult
from mixln.report.depth_report import DepthReport
from mixln.report.evaluation import EvaluationReport
from mixln.report.norm_removal import NormRemovalReport
from mixln.report.policies import PolicyReport
from mixln.report.reproduction import Reproduction
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.fine_tuned_model import FineTuningReport
from mixln.studies.prune_and_heal import HealingReport
from mixln.studies.pruning_request import PruningRecord
from mixln.studies.reward_model import RewardReport
from mixln.tasks.healing_config import HealingConfig
from mixln.tasks.kinds import KINDS, LANGUAGE
from mixln.tasks.norm_removal.config import NormRemovalConfig
from mixln.tasks.recipes import find_recipe, list_recipes
from mixln.training.config import ExecutionConfig, FaultConfig, OptimizerConfig
from plain_signatures import complete_text, simplify

BUILT = "_built"
"""The folder, below docs/, of files that the build makes; git ignores it."""

PAGES = "pages"
"""The folder below that of what goes into the site as it is."""

_COLUMNS = 100
"""Characters of a line of the reference of the commands."""

_OUTSIDE = {
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changes.md",
    "benchmarks/README.md": "project/benchmarks.md",
}
"""Files that pages link to, as they are read in the repository, and the page that includes each of them."""

_SHOWN_ONCE = (OptimizerConfig, FaultConfig, ExecutionConfig)
"""Parts that recipes of all kinds have."""

_RESULTS = {
    "results.json": (ComparisonResult, "of `mixln compare`"),
    "result.json": (RunResult, "of each run of a comparison, in `runs/`"),
    "report.json": (DepthReport, "of `mixln diagnose`"),
    "norm_removal.json": (NormRemovalReport, "of `mixln remove-norm`, and in `task_result.json` of its run"),
    "evaluation.json": (EvaluationReport, "of `mixln evaluate`"),
    "finetuning.json": (FineTuningReport, "of `mixln finetune`"),
    "reward.json": (RewardReport, "of `mixln reward`, also in the folder of the model"),
    "rlhf.json": (PolicyReport, "of `mixln rlhf`"),
    "TABLE.SCALE.json": (Reproduction, "of `mixln reproduce`"),
    "pruning.json": (PruningRecord, "of `mixln prune`"),
    "healing.json": (HealingReport, "of `mixln prune --heal`"),
}


def _commands(_folder: Path) -> str:
    commands = [find_interface(name) for name in COMMANDS if not is_group(name)]
    pages = {command.name: help_page(command, everything=True, columns=_COLUMNS) for command in commands}
    return "\n".join(f"## `mixln {name}`\n\n```text\n{page.rstrip()}\n```\n" for name, page in pages.items())


def _recipe(_folder: Path) -> str:
    sections: list[str] = []
    for kind in KINDS.values():
        parts = [("", "The recipe itself", "", kind.config)]
        parts += [(f"{name}.", f"`{name}`", _target(part), part) for name, part in nested(kind.config)]
        shown = [
            f"### {title}\n\n{target}{describe(part)}\n\n{field_table(part, prefix=prefix)}"
            for prefix, title, target, part in parts
            if part not in _SHOWN_ONCE or kind is LANGUAGE
        ]
        same = "" if kind is LANGUAGE else "\n\n`optimizer`, `faults` and `execution` are those above."
        sections += [f"## Recipes of {kind.about}{same}", *shown]
    return "\n\n".join(sections)


def _target(kind: type) -> str:
    """The line that names a class in full, and that links to the class lead to."""
    return f"```{{eval-rst}}\n.. py:class:: {kind.__module__}.{kind.__qualname__}\n```\n\n"


def _short_names(_folder: Path) -> str:
    rows = [
        f"| `{short}` | `{field}` | {' and '.join(_kinds_with(short))} |"
        for short, field in {
            short: field for kind in KINDS.values() for short, field in kind.short_names.items()
        }.items()
    ]
    return "\n".join(["| short name | field | recipes of |", "| --- | --- | --- |", *rows])


def _kinds_with(short: str) -> list[str]:
    return [kind.about for kind in KINDS.values() if short in kind.short_names]


def _settings(_folder: Path) -> str:
    kinds = (DiagnosisConfig, HealingConfig, NormRemovalConfig)
    return "\n\n".join(f"### `{kind.__name__}`\n\n{describe(kind)}\n\n{field_table(kind)}" for kind in kinds)


def _shipped_recipes(_folder: Path) -> str:
    sections = []
    for name in list_recipes():
        text = find_recipe(name).read_text(encoding="utf-8").rstrip()
        yaml.safe_load(text)
        sections.append(f"### `{name}`\n\n```yaml\n{text}\n```")
    return "\n\n".join(sections)


def _results(folder: Path) -> str:
    schemas = folder / PAGES / "schemas"
    schemas.mkdir(parents=True, exist_ok=True)
    sections: list[str] = []
    shown: set[type] = set()
    elsewhere = (folder.parent / "reference" / "python.md").read_text(encoding="utf-8")
    for name, (kind, of) in _RESULTS.items():
        version = getattr(kind, "SCHEMA_VERSION", None)
        path = schemas / name.replace(".json", ".schema.json")
        path.write_text(json.dumps(json_schema(kind, name, version), indent=1), encoding="utf-8")
        text = f"## `{name}`\n\nThe result {of}." + (f" Its `schema_version` is {version}." if version else "")
        text += f' <a href="../schemas/{path.name}">JSON Schema</a>'
        for part in all_parts(kind):
            if part not in shown:
                shown.add(part)
                target = "" if re.search(rf"::.*\b{part.__name__}$", elsewhere, re.MULTILINE) else _target(part)
                text += f"\n\n### `{part.__name__}`\n\n{target}{describe(part)}\n\n{field_table(part, defaults=False)}"
        sections.append(text)
    return "\n\n".join(sections)


def _gallery(folder: Path) -> str:
    folder = folder / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    sections = write_gallery(folder.parents[1] / "results", folder)
    reports = [section.folder / section.page for section in sections if section.page]
    with tempfile.TemporaryDirectory() as user:
        shots = {shot.parent for shot in photograph(reports, Path(user))}
    pages = folder.parent / PAGES / "reports"
    shutil.rmtree(pages, ignore_errors=True)
    texts = []
    for section in sections:
        where = f"/{BUILT}/gallery/{section.folder.name}"
        text = f"## {section.title}\n\n{section.text}"
        if section.page:
            shutil.copytree(section.folder, pages / section.folder.name)
            page = f"{section.folder.name}/{section.page}"
            text += f' <a href="../reports/{page}">Open the whole report</a>, which is one file.'
        if section.folder in shots:
            text += f"\n\n![The report as a browser shows it]({where}/screenshot.png)"
        for shown in section.figures:
            text += f"\n\n### {shown.title}\n\n![{shown.title}]({where}/figures/{shown.name}.png)\n\n{shown.text}"
        texts.append(text)
    return "\n\n".join(texts)


PARTS: dict[str, Callable[[Path], str]] = {
    "commands": _commands,
    "recipe": _recipe,
    "settings": _settings,
    "short names": _short_names,
    "shipped recipes": _shipped_recipes,
    "results": _results,
    "gallery": _gallery,
}
"""What the build writes into pages, by name; each gets the folder for files that it makes."""

_MARK = re.compile(r"^<!-- build: (.+?) -->$", re.MULTILINE)


def complete(app: Any, page: str, text: list[str]) -> None:
    """Fill in what the build writes, and make links to files outside docs/ links to the pages that include them."""
    built = Path(app.srcdir) / BUILT
    text[0] = _MARK.sub(lambda match: PARTS[match[1]](built), text[0])
    up = "../" * (page.count("/") + 1)
    for path, included in _OUTSIDE.items():
        text[0] = text[0].replace(f"]({up}{path}", f"](/{included}")


def replace_included_links(_app: Any, _path: Path, _parent: str, text: list[str]) -> None:
    """Make links of a file outside docs/, which a page includes, links to pages; what has none is a name alone."""
    text[0] = text[0].replace("](docs/", "](/")
    text[0] = re.sub(r"\[([^\]]+)\]\((?!https?:|/|#)[^)]+\)", r"`\1`", text[0])


def pages_with_parts(_app: Any, env: Any, _added: set[str], _changed: set[str], _removed: set[str]) -> list[str]:
    """Pages that the build writes into are read anew each time: what they show may have changed without them."""
    return [page for page in env.found_docs if _MARK.search(Path(env.doc2path(page)).read_text(encoding="utf-8"))]


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    (Path(app.srcdir) / BUILT / PAGES).mkdir(parents=True, exist_ok=True)
    app.connect("env-get-outdated", pages_with_parts)
    app.connect("source-read", complete)
    app.connect("include-read", replace_included_links)
    app.connect("doctree-resolved", link_terms)
    app.connect("autodoc-before-process-signature", simplify)
    app.connect("autodoc-process-docstring", complete_text, priority=100)  # before napoleon reads it
    return {"parallel_read_safe": False, "parallel_write_safe": True}
