"""Pages opened and used in a real browser: pointer, keys, legends, tables, buttons, widths, a dark screen, paper."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hard_reports import comparison, diagnosed, report, run

from mixln.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on PATH")

NASTY = "</script><b>"
SCHEMES = ("pre", "mix(alpha=0.25)", "lns")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("a folder with spaces & more")
    (folder / "compare" / "runs").mkdir(parents=True)
    runs = [run(scheme, seed, layers=4, rate=rate) for scheme in SCHEMES for seed in range(2) for rate in (1e-3, 3e-3)]
    compared = write_report(comparison(runs), folder / "compare")
    report(diagnosed(NASTY, 12), diagnosed("plain, with a comma", 12)).save(folder / "diagnose")
    return {"compare": compared, "diagnose": folder / "diagnose" / "report.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """A page in the browser, whose complaints are collected."""

    def __init__(self, browser: Any, path: Path, width: int = 1200, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *error: object) -> None:
        self.context.close()
        assert self.complaints == []
        assert [address for address in self.requests if not address.startswith("data:")] == self.requests[:1]


def point_at(page: Any, figure: str, x: float, y: float, kind: str = "wide") -> str:
    """Move the pointer to a place of a figure, in shares of its size, and return what the page says there."""
    svg = page.locator(f"#{figure} .{kind} svg[data-panels]")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    tip = page.locator(".tip")
    return tip.inner_text() if tip.is_visible() else ""


def places(page: Any, figure: str, kind: str = "wide") -> list[dict[str, Any]]:
    return page.locator(f"#{figure} .{kind} svg[data-panels]").evaluate("svg => JSON.parse(svg.dataset.panels)")


def at_column(panel: dict[str, Any], x: float) -> float:
    left, _, width, _ = panel["box"]
    return left + width * (x - panel["x"]["low"]) / (panel["x"]["high"] - panel["x"]["low"])


@pytest.mark.parametrize("kind", ["wide", "narrow"])
def test_the_number_under_the_pointer_is_said(browser: Any, pages: dict[str, Path], kind: str) -> None:
    with Opened(browser, pages["diagnose"], 1200 if kind == "wide" else 400) as page:
        costs = diagnosed(NASTY, 12).series["removal"].estimates
        panel, other = places(page, "removal", kind)
        middle = panel["box"][1] + panel["box"][3] / 2
        for layer in (1, 5, 12):
            said = point_at(page, "removal", at_column(panel, layer), middle, kind).splitlines()
            assert said[0] == NASTY
            assert said[1] == f"removed layer {layer}"
            value, low, high = (
                float(one) for one in said[2].replace("[", "").replace("]", "").replace(",", "").split()
            )
            expected = costs[layer - 1]
            assert (value, low, high) == pytest.approx((expected.value, *(expected.interval or ())), rel=1e-4)
        assert point_at(page, "removal", at_column(other, 3), other["box"][1] + 0.02, kind).startswith("plain, with")
        assert point_at(page, "removal", 0.5, 0.001, kind) == ""


def test_the_cell_under_the_pointer_is_said(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["diagnose"]) as page:
        triangle = diagnosed(NASTY, 12).series["angular_distance"].triangle()
        panel = places(page, "angular_distance")[0]
        left, top, width, height = panel["box"]
        across, up = left + width * 2.5 / 12, top + height * (1 - 3.5 / 12)  # the third cell of the fourth row
        said = point_at(page, "angular_distance", across, up).splitlines()
        assert said[1] == "first layer 3, number of layers 4"
        assert float(said[2]) == pytest.approx(triangle[3][2], rel=1e-4)


def test_keys_go_from_number_to_number(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["diagnose"]) as page:
        page.locator("#removal .wide svg[data-panels]").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert "removed layer 2" in page.locator(".tip").inner_text()
        page.keyboard.press("ArrowLeft")
        assert "removed layer 1" in page.locator(".tip").inner_text()
        page.keyboard.press("Escape")
        assert page.locator(".tip").is_hidden()


def test_the_legend_hides_a_line_and_its_numbers(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["compare"]) as page:
        figure = page.locator("#variance")
        button = figure.get_by_role("button", name="lns")
        lines = figure.locator('.wide svg [data-series="2"]')
        assert lines.count() >= 1
        shown = "parts => parts.every(part => getComputedStyle(part).visibility === 'visible')"
        assert lines.evaluate_all(shown)
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert lines.evaluate_all("parts => parts.every(part => getComputedStyle(part).visibility === 'hidden')")
        for name in ("pre", "mix(alpha=0.25)"):
            figure.get_by_role("button", name=name).click()
        assert point_at(page, "variance", 0.5, 0.5) == ""
        button.click()
        assert lines.evaluate_all(shown)
        assert point_at(page, "variance", 0.5, 0.5).startswith("lns")


def test_tables_sort_by_number_and_back(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["diagnose"]) as page:
        table = page.locator("#layers-1 table").first
        head = table.locator("thead th").nth(1)
        costs = diagnosed(NASTY, 12).series["removal"].values

        def layers() -> list[int]:
            return [int(text) for text in table.locator("tbody th").all_inner_texts()]

        ascending = sorted(range(1, 13), key=lambda layer: costs[layer - 1])
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert layers() == ascending
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert layers() == ascending[::-1]
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") is None
        assert layers() == list(range(1, 13))


def test_schemes_and_times_sort(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["compare"]) as page:
        table = page.locator("#runs table")
        table.get_by_role("button", name="scheme").click()
        assert table.locator("tbody th").all_inner_texts()[0].strip() == "lns"
        table.get_by_role("button", name="validation loss").click()
        losses = [float(text) for text in table.locator("tbody td:nth-child(4)").all_inner_texts()]
        assert losses == sorted(losses)


def copied_by(page: Any, button: Any) -> str:
    """What is in the clipboard after a click, for which the page may take a moment."""
    page.evaluate("navigator.clipboard.writeText('')")
    button.click()
    for _ in range(200):
        if text := page.evaluate("navigator.clipboard.readText()"):
            return text
        page.wait_for_timeout(50)
    raise AssertionError("nothing was copied")


def test_data_and_command_are_copied(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["diagnose"]) as page:
        rows = list(csv.DictReader(io.StringIO(copied_by(page, page.locator("#removal [data-copy=csv]")))))
        assert [row["label"] for row in rows] == [NASTY] * 12 + ["plain, with a comma"] * 12
        for row, estimate in zip(rows, diagnosed(NASTY, 12).series["removal"].estimates, strict=False):
            numbers = [float(row[name]) for name in ("loss, nats per token", "low", "high")]
            assert numbers == pytest.approx([estimate.value, *(estimate.interval or ())], rel=1e-5)
        command = copied_by(page, page.locator("[data-copy=text]"))
        assert command == "mixln diagnose 'runs/a model' --text books.jsonl.gz"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("name", ["compare", "diagnose"])
def test_it_fits_and_can_be_read(browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    with Opened(browser, pages[name], width, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = page.locator("svg[data-panels]:visible")
        assert shown.count() == page.locator("figure").count()
        sizes = shown.evaluate_all(
            "svgs => svgs.flatMap(svg => [...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect()))"
            ".map(box => Math.min(box.width, box.height))"
        )
        assert min(size for size in sizes if size) > 6
        # letters stand out from what is behind them
        ink, card = page.locator("svg[data-panels]:visible text").first.evaluate(
            "text => [getComputedStyle(text).fill, getComputedStyle(text.closest('section')).backgroundColor]"
        )
        assert abs(brightness(ink) - brightness(card)) > 150


def test_paper_shows_all_lines_and_no_buttons(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["compare"], 400, color_scheme="dark") as page:
        page.emulate_media(media="print")
        assert page.locator(".plot.wide").first.is_visible()
        assert page.locator("[data-copy=csv]").first.is_hidden()
        assert brightness(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 250


def test_links_lead_to_files_that_exist(browser: Any, pages: dict[str, Path]) -> None:
    for path in pages.values():
        with Opened(browser, path) as page:
            links = page.locator("a[href^='./']").evaluate_all("links => links.map(link => link.href)")
        assert len(links) > 4
        for link in links:
            assert (path.parent / link.removeprefix(path.parent.as_uri() + "/")).exists(), link
    assert 'href="./runs/"' in pages["compare"].read_text(encoding="utf-8")


def brightness(color: str) -> float:
    numbers = [float(part) for part in color.partition("(")[2].rstrip(")").split(",")[:3]]
    return sum(numbers) / 3
