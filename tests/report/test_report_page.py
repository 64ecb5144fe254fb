from __future__ import annotations

import base64
import errno
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from browser import assert_chromium_is_content

from mixln.errors import InputError
from mixln.report import from_json, write_report
from mixln.report.figures import FIGURES
from mixln.storage import write_file
from mixln.studies.compared_kinds import depth_figures

SHOWN = [*FIGURES, *depth_figures()]


def rendered(result) -> str:
    with TemporaryDirectory() as folder:
        return write_report(result, folder).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects ids, addresses and visible text, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "link", "img", "br", "wbr", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str | None] = []
        self.headings: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        named = dict(attrs)
        if tag == "svg" and named.get("role") == "img":
            self.alts.append(named.get("aria-label"))
        if tag == "th":
            assert named.get("scope") in ("col", "row")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "srcset", "action", "poster", "data"):
                self.addresses.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def result(make_result):
    return make_result(5, 3, rates=(1e-3, 3e-3), diverged=(("post", 3e-3), ("lns", 3e-3)), no_depth=("deepnorm",))


@pytest.fixture(scope="module")
def html(result) -> str:
    return rendered(result)


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_the_page_holds_every_scheme_figure_and_fact(page, result):
    for summary in result.summaries:
        assert summary.placement in page.text
    for kind in SHOWN:
        assert kind.title in page.text
        assert kind.name in page.ids
    for label, value in result.facts.items():
        assert label in page.text
        assert value in page.text
    for text in (result.machine, result.command, result.version, *result.notes):
        assert text in page.text
    assert "diverged" in page.text
    assert len(page.alts) == 2 * len(SHOWN)  # for a wide and for a narrow screen
    assert all(page.alts)
    assert page.headings[0] == "h1"
    assert page.headings.count("h1") == 1


def test_nothing_is_fetched(page, html):
    assert page.addresses
    beside = {"./results.json", "./table.md", "./figures/"}
    beside |= {f"./figures/{kind.name}.{suffix}" for kind in SHOWN for suffix in ("svg", "png")}
    local = [address for address in page.addresses if not address.startswith(("data:", "#"))]
    assert set(local) == beside
    # the address of a namespace in the script is fetched by nobody
    text = html.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"url\((?!#)|@import|src=|https?://", text)
    targets = [address[1:] for address in page.addresses if address.startswith("#")]
    assert set(targets) <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(page.ids)


def test_the_page_allows_its_own_script_alone(html):
    (policy,) = re.findall(r"script-src '([^']+)'", html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert policy == f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def test_ids_are_unique(page):
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []


def test_the_page_is_the_same_each_time(result, html, tmp_path):
    assert write_report(result, tmp_path).read_text(encoding="utf-8") == html


@pytest.mark.parametrize("label", ["</script><b>", "<script>alert(1)</script>&", "<!-- <script>", "'\"><img src=x>"])
def test_markup_in_texts_is_escaped(make_result, label):
    text = rendered(make_result(["pre", label], 1, layers=2))
    page = Page(text)  # which checks that all tags are closed
    assert label in page.text
    assert page.tags["script"] == len(SHOWN)  # the figures' numbers, and the script; one figure of these is not drawn
    assert not {"b", "img"} & page.tags.keys()
    numbers = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert all(label in {one["label"] for one in json.loads(figure)["series"]} for figure in numbers)


def test_a_page_without_depth_or_losses_says_so(make_result):
    text = Page(rendered(make_result(2, 1, diverged=("pre", "mix(alpha=0.25)")))).text
    assert "Every run diverged" in text
    assert "no run that has learned word order has depth measures" in text


def test_bands_and_whiskers_are_named_where_there_are_any(make_result):
    several, one = (Page(rendered(make_result(2, seeds))).text for seeds in (2, 1))
    assert several.count("Bands reach from the lowest to the highest seed.") == 3
    assert several.count("Whiskers reach from the lowest to the highest seed.") == 1
    assert "Bands" not in one
    assert "Whiskers" not in one


def test_a_report_is_complete_and_read_back(make_result, tmp_path):
    result = make_result(2, 3, layers=4)
    assert write_report(result, tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "report.html"
    files = {path.relative_to(tmp_path / "new" / "folder").as_posix() for path in (tmp_path / "new").rglob("*.*")}
    drawn = {kind.name for kind in SHOWN} - {"learning_rate_grid"}
    expected = {"results.json", "table.md", "report.html"}
    assert files == expected | {f"figures/{name}.{suffix}" for name in drawn for suffix in ("png", "svg")}
    assert from_json((tmp_path / "new" / "folder" / "results.json").read_text(encoding="utf-8")) == result


def test_a_full_disk_is_an_input_error_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_file(tmp_path / "a.txt", "old")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        assert data
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"Cannot write .*a\.txt \(No space left"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("width", [1100, 500])
def test_chromium_shows_the_page_without_complaint(html, tmp_path, width):
    page = write_file(tmp_path / "report.html", html)
    assert_chromium_is_content(page, tmp_path, width)


def test_schemes_are_shown_by_their_names_and_numbers_are_kept_by_their_placements(make_result, tmp_path: Path) -> None:
    made = make_result(2, 3)
    first = made.summaries[0].placement
    named = replace(made, names={first: "the first"}, notes=[f"`{first}`, seed 0: a note"])
    page = write_report(named, tmp_path).read_text(encoding="utf-8")
    shown = page.replace(f"the first: {first}", "")
    assert f">{first}<" not in shown
    assert "the first</code>" in page
    assert f"the first: {first}" in page
    assert "<code>the first</code>, seed 0: a note" in page
    assert "the first" in (tmp_path / "table.md").read_text(encoding="utf-8")
    kept = from_json((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert kept.runs[0].placement == first
    assert kept.names == {first: "the first"}


def test_a_run_links_to_its_folder_if_that_lies_beside_the_page(make_result, tmp_path: Path) -> None:
    made = make_result(1, 2)
    runs = [replace(run, folder=f"runs/seed {run.seed}") for run in made.runs]
    (tmp_path / "runs" / "seed 0").mkdir(parents=True)
    page = write_report(replace(made, runs=runs), tmp_path).read_text(encoding="utf-8")
    links = [address for address in Page(page).addresses if address.startswith("./runs/seed") or "seed%20" in address]
    assert len(links) == 1
    assert links[0].endswith("runs/seed%200/")
