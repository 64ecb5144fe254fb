"""The gallery: every figure that a report writes, and every report as a page, drawn by the build.

Nothing here names a figure: what reports write to their `figures/` is shown, with what the reports say of it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from committed_results import comparison, diagnosis
from mixln.placement import Placement
from mixln.report import ComparisonResult, write_report
from mixln.report.depth_report import DepthReport
from mixln.report.figure_files import write_figure
from mixln.report.figures import described, figures_of
from mixln.report.norm_removal import CONTROL, NORM_FREE, RemovalRecord, removal_figure
from mixln.report.placement_figures import draw_placement
from mixln.report.scheme_diagram import describe_stack

_SETTING = {
    "Model": "llama, 12 layers, hidden size 128, 3.423M parameters",
    "Data": "296 books of Project Gutenberg; validation on 100,000 tokens of 8 other books",
}


@dataclass(frozen=True)
class Shown:
    """A figure of the gallery, or a report.

    Attributes:
        name: file name without suffix.
        title: heading.
        text: what is said of it.
    """

    name: str
    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """Part of the gallery: where its files are, and what is shown of them."""

    folder: Path
    title: str
    text: str
    figures: list[Shown]
    page: str = ""


def write_gallery(results: Path, out: Path) -> list[Section]:
    """Draw everything from docs/results into a folder.

    Args:
        results: docs/results.
        out: gets a folder for each section.
    """
    sections = [
        _comparison(
            comparison(results / "registry" / "std0.02", _SETTING | {"Embedding std": "0.02"}, "mixln compare"),
            out / "comparison",
            "A comparison of three schemes, three seeds",
        ),
        _comparison(
            comparison(results / "registry" / "rest", _SETTING | {"Embedding std": "0.02"}, "mixln compare"),
            out / "many-schemes",
            "A comparison of twenty schemes, one seed",
        ),
    ]
    sections += [
        _diagnosis(diagnosis(path), out / path.stem) for path in sorted((results / "diagnoses").glob("*.json"))
    ]
    sections += [_norm_removal(path, out / path.stem) for path in sorted((results / "removals").glob("*.json"))]
    return [*sections, _placements(out / "placements")]


def _comparison(result: ComparisonResult, folder: Path, title: str) -> Section:
    write_report(result, folder)
    texts: dict[str, Shown] = {}
    for kind in figures_of(result):
        shows, levels = described(kind, result)
        texts[kind.name] = Shown(kind.name, kind.title, " ".join(filter(None, [shows, kind.reading, levels])))
    texts |= {spec.name: Shown(spec.name, spec.title, f"{spec.shows} {spec.reading}") for spec in result.depth_figures}
    text = "What `mixln compare` writes; `mixln.compare` in Python."
    return Section(folder, title, text, _drawn(folder, texts), "report.html")


def _diagnosis(report: DepthReport, folder: Path) -> Section:
    report.save(folder)
    texts = {spec.name: Shown(spec.name, spec.title, f"{spec.shows} {spec.reading}") for spec in report.figures}
    names = ", ".join(model.model for model in report.models)
    text = f"What `mixln diagnose` writes; `mixln.diagnose` in Python. Its headline: {report.headline}."
    return Section(folder, f"A diagnosis of {names}", text, _drawn(folder, texts), "report.html")


def _norm_removal(path: Path, folder: Path) -> Section:
    found = json.loads(path.read_text(encoding="utf-8"))
    curves = {label: found["curves"][name] for label, name in ((NORM_FREE, "norm_free"), (CONTROL, "control"))}
    removals = [RemovalRecord(**one) for one in found["removals"]]
    write_figure(removal_figure(curves, removals, found["loss_original"]).figure, "norm_removal", folder / "figures")
    shown = Shown(
        "norm_removal", "Loss while the norms go", "Each tick above is a removal; its colour says what was removed."
    )
    return Section(folder, "A removal of norms", "What `mixln remove-norm` writes.", [shown])


def _placements(folder: Path) -> Section:
    labels = ("pre", "mix(alpha=0.25)+gpas")
    shown = [Shown(f"placement-{number}", f"`{label}`", "") for number, label in enumerate(labels, start=1)]
    for one, label in zip(shown, labels, strict=True):
        figure = draw_placement(label, describe_stack(Placement.parse(label).plan(12)))
        write_figure(figure, one.name, folder / "figures")
    text = (
        "What `mixln schemes --figures FOLDER` draws. Those of all schemes and modifiers: "
        "[Schemes and modifiers](schemes.md)."
    )
    return Section(folder, "Pictures of placements", text, shown)


def _drawn(folder: Path, texts: Mapping[str, Shown]) -> list[Shown]:
    """Every figure that a report has written, in the report's order; those without a text come last."""
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    return [text for name, text in texts.items() if name in names] + [
        Shown(name, name.replace("_", " ").capitalize(), "") for name in sorted(names - texts.keys())
    ]


def photograph(pages: Iterable[Path], folder: Path) -> Sequence[Path]:
    """Screenshots of pages by Chromium; none where there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        return []
    made: list[Path] = []
    for page in pages:
        shot = page.with_name("screenshot.png")
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += [f"--user-data-dir={folder}", "--window-size=1200,1500", f"--screenshot={shot}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        if done.returncode == 0 and shot.is_file():
            made.append(shot)
    return made
