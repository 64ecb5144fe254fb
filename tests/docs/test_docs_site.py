"""The documentation site builds without a warning, and every link of it leads somewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {name for name in (found.get("id"), found.get("name")) if name}
        if tag in ("a", "link", "img", "script"):
            self.targets += [target for name in ("href", "src") if (target := found.get(name))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(package, reason="the site's packages come with `make docs`")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "--nitpicky", "--fail-on-warning", "--quiet", ROOT / "docs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_what_the_build_writes_is_there(site: Path) -> None:
    for page, text in {
        "reference/commands.html": "mixln diagnose",
        "reference/python.html": "mixln.Placement",
        "reference/recipes.html": "max_grad_norm",
        "reference/results.html": "loss_norm_free",
        "reference/gallery.html": "figures/loss_curves.png",
        "how-to/which-scheme.html": "glossary-term",
        "reports/comparison/report.html": "mix(alpha=0.25)",
    }.items():
        name = "loss_curves.png" if "/" in text else text  # images lie in one folder of the site
        assert name in (site / page).read_text(encoding="utf-8"), page
    assert (site / "objects.inv").is_file()
    assert (site / "searchindex.js").is_file()
    assert "Mix-LN" in (site / "concepts" / "glossary.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_link_leads_to_a_page_and_a_place_in_it(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 50
    broken: list[str] = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            linked = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not linked.exists() or (linked in pages and anchor not in pages[linked].anchors):
                broken.append(f"{path.relative_to(site)}: {target}")
    assert not broken, "\n".join(broken)


@pytest.mark.slow
def test_nothing_is_fetched_when_a_page_is_opened(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not any(f'{name}="http' in text for name in ("src", "data-src")), path


@pytest.mark.slow
def test_a_written_result_has_the_fields_of_its_schema(site: Path) -> None:
    schema = json.loads((site / "schemas" / "results.schema.json").read_text(encoding="utf-8"))
    written = ROOT / "docs" / "_built" / "gallery" / "comparison" / "results.json"
    found = json.loads(written.read_text(encoding="utf-8"))
    assert set(schema["required"]) <= found.keys() <= set(schema["properties"])
