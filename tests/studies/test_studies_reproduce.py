"""Tables of the papers: specifications, the runs that tables share, verdicts, and the page."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml

import mixln
from mixln.errors import InputError
from mixln.placement import Placement
from mixln.report.reproduction import AGREES, DISAGREES, NOT_RUN, UNKNOWN
from mixln.report.reproduction_report import ReproductionReport
from mixln.report.results import CurvePoint, RunResult
from mixln.report.series import Estimate, Series
from mixln.studies.reproduce import runs as runs_module
from mixln.studies.reproduce.quantities import QUANTITIES, quantity
from mixln.studies.reproduce.runs import CLAIMS_FOLDER, Cell, TableRuns
from mixln.studies.reproduce.specification import (
    SCALES,
    list_specifications,
    load_specification,
)
from mixln.studies.reproduce.stored import stored_tables
from mixln.studies.reproduce.table import open_table
from mixln.studies.reproduce.verdicts import compare_runs
from mixln.tasks import Recipe
from mixln.tasks.recipes import flat_fields

TABLE: dict[str, Any] = {
    "title": "Perplexity of two schemes",
    "paper": "No paper",
    "editions": {"first": "table 1"},
    "link": "https://example.org",
    "caption": "Made up.",
    "quantity": "perplexity",
    "baseline": "Pre-LN",
    "rows": [
        {"name": "Pre-LN", "settings": {"placement": "pre"}, "published": {"1B": 20.0}},
        {"name": "Post-LN", "settings": {"placement": "post"}, "published": {"1B": 1400.0}},
    ],
    "conditions": {"nano": {"seeds": [0, 1, 2], "learning_rates": [1e-3, 3e-3]}},
    "claims": [
        {"says": "Pre-LN is better", "lower": ["Pre-LN", "Post-LN"]},
        {"says": "Post-LN does not train", "does_not_learn": ["Post-LN"]},
    ],
    "open_points": ["All of it."],
}


def write_table(recipe: Recipe, folder: Path, **changes: Any) -> Path:
    """A table of the tiny recipe, as a user would write it."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {name: value for name, value in flat_fields(recipe).items() if value is not None}
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        *path, leaf = name.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
        inner[leaf] = list(value) if isinstance(value, tuple) else value
    (folder / "tiny.yaml").write_text(yaml.safe_dump(nested), encoding="utf-8")
    columns = [{"name": "1B", "settings": {"nano": {"recipe": str(folder / "tiny.yaml")}}}]
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump({**TABLE, "columns": columns, **changes}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def short(recipe: Recipe) -> Recipe:
    return replace(recipe, steps=4, evaluate_every=None)


@pytest.fixture(scope="session")
def made(short: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReproductionReport]:
    folder = tmp_path_factory.mktemp("reproduced")
    path = write_table(short, folder)
    found = mixln.reproduce(str(path), out=folder / "out", cache=folder / "cache", stop_after=None)
    assert isinstance(found, ReproductionReport)
    return folder, found


def run_result(placement: str, seed: int, loss: float, *, learned: bool = True) -> RunResult:
    over = Estimate(-1.0, (-1.1, -0.9)) if learned else Estimate(0.0, (-0.1, 0.1))
    layers = Series("removal", "layer", "nats", [Estimate(value) for value in (4.0, 3.0, loss, 2 * loss)])
    runs = Series("angular_distance", "run", "share", [Estimate(value) for value in (0.4, 0.3, 0.2, 0.1, *([9.0] * 6))])
    return RunResult(
        placement=placement,
        seed=seed,
        learning_rate=1e-3,
        embedding_std=0.02,
        num_hidden_layers=4,
        num_parameters=10,
        train_tokens=100,
        train_curve=[CurvePoint(1, 100, loss)],
        validation_curve=[],
        validation_loss=loss,
        perplexity=math.exp(loss),
        diverged=False,
        seconds=1.0,
        tokens_per_second=100.0,
        depth={"removal": layers, "angular_distance": runs},
        config={},
        over_token_frequencies=over,
    )


@pytest.mark.parametrize("name", list_specifications())
def test_every_shipped_table_is_whole(name: str) -> None:
    """Its placements are placements, its quantities are known, and every recipe of its runs can be built."""
    table = load_specification(name)
    assert {quantity(one) for one in (table.quantity, *(claim.quantity or table.quantity for claim in table.claims))}
    assert table.claims or table.study == "recipes", "nothing is claimed"
    assert table.link.startswith("https://")
    for row in table.rows:
        assert row.published or row.note, f"{row.name} has no number, and nothing says why"
        if "placement" in row.settings:
            Placement.parse(row.settings["placement"])
    for scale in SCALES:
        if not table.columns_at(scale) or scale not in table.conditions:
            continue
        with open_table(table, scale, Path("unused"), changes={"images": "somewhere"}) as found:
            if not isinstance(found, TableRuns):
                continue
            for cell in found.cells:
                assert found.recipe(cell).model.placement == str(Placement.parse(found.recipe(cell).model.placement))
                assert found.rates(cell)


def test_a_table_is_made_and_put_beside_the_published_numbers(made: tuple[Path, ReproductionReport]) -> None:
    folder, report = made
    (table,) = report.tables
    results = sorted((folder / "out" / "runs").glob("*/result.json"))
    # two learning rates with the first seed, and the best of them with two further ones
    assert len(results) == table.finished == table.planned == 2 * (2 + 2)
    best: dict[str, list[dict[str, Any]]] = {}
    for path in results:
        run = json.loads(path.read_text())
        best.setdefault(run["placement"], []).append(run)
    for row, placement in (("Pre-LN", "pre"), ("Post-LN", "post")):
        first = {run["learning_rate"]: run["validation_loss"] for run in best[placement] if run["seed"] == 0}
        rate = min(first, key=lambda rate: first[rate])
        perplexities = [run["perplexity"] for run in best[placement] if run["learning_rate"] == rate]
        cell = table.cell(row, "1B", "")
        assert len(perplexities) == cell.seeds == 3
        assert cell.learning_rate == rate
        assert cell.measured is not None
        assert cell.measured.value == pytest.approx(fmean(perplexities))
        assert cell.spread == pytest.approx(stdev(perplexities))
        assert cell.published == {"Pre-LN": 20.0, "Post-LN": 1400.0}[row]
    post = table.cell("Post-LN", "1B", "")
    assert post.published_difference == pytest.approx(math.log(1400 / 20))
    losses = {
        placement: {run["seed"]: run["validation_loss"] for run in best[placement] if run["learning_rate"] == rate}
        for placement, rate in (("pre", table.cell("Pre-LN", "1B", "").learning_rate), ("post", post.learning_rate))
    }
    deltas = [losses["post"][seed] - losses["pre"][seed] for seed in (0, 1, 2)]
    assert post.difference is not None
    assert post.difference.value == pytest.approx(fmean(deltas))
    half = 4.302653 * stdev(deltas) / math.sqrt(3)
    assert post.difference.interval == pytest.approx((fmean(deltas) - half, fmean(deltas) + half), rel=1e-5)
    # four steps teach less than frequencies
    assert not post.has_learned
    assert {claim.verdict for claim in table.claims} == {UNKNOWN, AGREES}
    page = (folder / "out" / "reproduction.html").read_text()
    for text in ("Pre-LN is better", "1400.00", "All of it.", "cannot be told"):
        assert text in page
    assert "Perplexity of two schemes" in str(report)
    assert list(report.to_frame()["published"]) == [20.0, 1400.0]
    (written,) = report.to_dict()["tables"]
    assert [claim["verdict"] for claim in written["claims"]] == [claim.verdict for claim in table.claims]
    assert stored_tables(folder / "out") == report.tables


def test_no_run_is_made_twice(made: tuple[Path, ReproductionReport], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when the table is made again, nor for another table that has runs in common with it."""
    folder, report = made
    calls: list[Any] = []
    compare = runs_module.compare

    def counted(recipe: Any, *given: Any, **named: Any) -> Any:
        calls.append((recipe.model.placement, recipe.seed))
        return compare(recipe, *given, **named)

    monkeypatch.setattr(runs_module, "compare", counted)
    again = mixln.reproduce(str(folder / "table.yaml"), out=folder / "out", cache=folder / "cache")
    assert isinstance(again, ReproductionReport)
    assert not calls
    assert [table.cells for table in again.tables] == [table.cells for table in report.tables]
    other = yaml.safe_load((folder / "table.yaml").read_text())
    other["rows"].append(
        {"name": "none", "settings": {"placement": "none"}, "published": {}, "note": "not in the paper"}
    )
    other["conditions"]["nano"]["learning_rates"] = [3e-3]
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    mixln.reproduce(str(folder / "other.yaml"), out=folder / "out", cache=folder / "cache")
    new = [call for call in calls if call[0] == "none"]
    assert len(new) == 3
    assert ("pre", 0) not in calls
    page = (folder / "out" / "reproduction.html").read_text()
    for name in ("table", "other"):
        assert f"{name} at nano scale" in page, "the page shows all tables that were made there"
    plan = mixln.reproduce(str(folder / "table.yaml"), plan="cpu", out=folder / "out", cache=folder / "cache")
    assert "8 of 8 runs are finished" in str(plan)


def test_every_recipe_is_that_of_the_table_or_says_why_not(tmp_path: Path) -> None:
    found = mixln.reproduce("mix-ln/hyperparameters", scale="paper", out=tmp_path)
    assert isinstance(found, ReproductionReport)
    (table,) = found.tables
    assert len(table.cells) == 5 * 8
    assert {claim.verdict for claim in table.claims} == {AGREES}
    departing = {(cell.row, cell.column) for cell in table.cells if cell.verdict == "departs"}
    assert departing == {("250M", "hidden"), ("7B", "steps")}
    assert all(cell.why for cell in table.cells if cell.verdict == "departs")
    # the comparison can fail
    specs = Path(runs_module.__file__).with_name("specs")
    wrong = yaml.safe_load((specs / "mix-ln" / "hyperparameters.yaml").read_text())
    wrong["rows"][0]["published"]["heads"] = 9
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    found = mixln.reproduce(str(tmp_path / "wrong.yaml"), scale="paper", out=tmp_path)
    assert isinstance(found, ReproductionReport)
    assert found.tables[0].claims[0].verdict == DISAGREES
    assert "heads is not 9" in found.tables[0].claims[0].why


def test_what_is_damaged_is_named_before_anything_is_run(
    made: tuple[Path, ReproductionReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made
    out = shutil.copytree(folder / "out", tmp_path / "out")
    monkeypatch.setattr(runs_module, "compare", lambda *_, **__: pytest.fail("a run was made"))

    def refused(damaged: Path, advice: str) -> None:
        text = damaged.read_text()
        damaged.write_text("{")
        with pytest.raises(InputError, match=advice) as caught:
            mixln.reproduce(str(folder / "table.yaml"), out=out, cache=folder / "cache")
        assert str(damaged) in str(caught.value)
        damaged.write_text(text)

    refused(out / "table.nano.json", "Delete it, and make the table again")
    refused(next(out.glob("runs/pre_*_seed0_*/result.json")), "to train this run anew")  # `none` is of another table
    mixln.reproduce(str(folder / "table.yaml"), out=out, cache=folder / "cache")


def test_a_plan_makes_nothing(short: Recipe, tmp_path: Path) -> None:
    path = write_table(short, tmp_path)
    found = mixln.reproduce(str(path), plan="cpu", out=tmp_path / "out", cache=tmp_path / "cache")
    rows = found.to_frame()
    assert len(rows) == 8
    assert set(rows["state"]) == {"open"}
    assert all(hours > 0 for hours in rows["hours"])
    assert "0 of 8 runs are finished" in str(found)
    assert not (tmp_path / "out" / "runs").exists()
    # neither is data prepared, which would be C4
    paper = mixln.reproduce("mix-ln/alpha", scale="paper", plan="h100", out=tmp_path / "out", cache=tmp_path / "none")
    assert [row["steps"] for row in paper.rows()] == [100_000] * 7
    assert not (tmp_path / "none").exists()


def test_runs_that_are_ended_early_are_not_judged(short: Recipe, tmp_path: Path) -> None:
    path = write_table(short, tmp_path, conditions={"nano": {"seeds": [0]}})
    found = mixln.reproduce(str(path), stop_after=2, out=tmp_path / "out", cache=tmp_path / "cache")
    assert isinstance(found, ReproductionReport)
    (table,) = found.tables
    assert table.stopped_after == 2
    assert {claim.verdict for claim in table.claims} == {NOT_RUN}
    assert {cell.verdict for cell in table.cells} == {"", NOT_RUN}
    (folder, *_) = (tmp_path / "out" / "runs").iterdir()
    assert json.loads((folder / "result.json").read_text())["train_curve"][-1]["step"] == 2


def test_list_and_report(made: tuple[Path, ReproductionReport], tmp_path: Path) -> None:
    folder, _ = made
    listed = mixln.reproduce(list=True, out=folder / "out")
    assert [row["name"] for row in listed.rows()] == list(list_specifications())
    report = mixln.reproduce(report=True, out=folder / "out")
    assert isinstance(report, ReproductionReport)
    assert "table" in [table.name for table in report.tables]
    with pytest.raises(InputError, match="holds no results of tables"):
        mixln.reproduce(report=True, out=tmp_path)


@pytest.mark.parametrize(
    ("ours", "others", "verdict", "why"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.2, 2.1], AGREES, ""),
        ([2.0, 2.2, 2.1], [1.0, 1.1, 1.2], DISAGREES, ""),
        ([1.0, 2.0, 3.0], [2.0, 1.0, 3.0], UNKNOWN, "the interval holds zero"),
        ([1.0, 1.1], [2.0, 2.1], UNKNOWN, "an interval takes 3 seeds"),
    ],
)
def test_a_verdict_is_that_of_the_interval(ours: list[float], others: list[float], verdict: str, why: str) -> None:
    from mixln.studies.reproduce.specification import Claim
    from mixln.studies.reproduce.verdicts import _test

    results = {
        Cell("a", "c", ""): [run_result("mix", seed, loss) for seed, loss in enumerate(ours)],
        Cell("b", "c", ""): [run_result("pre", seed, loss) for seed, loss in enumerate(others)],
    }
    found = _test(Claim("a is lower", ["a", "b"]), QUANTITIES["validation_loss"], results, "c", "")
    assert found.verdict == verdict
    assert why in found.why


def test_a_run_that_has_learned_nothing_is_not_ranked() -> None:
    runs = [run_result("pre", seed, 1.0 + seed / 10) for seed in range(3)]
    nothing = [run_result("post", seed, 6.0 + seed / 100, learned=False) for seed in range(3)]
    difference, verdict, why = compare_runs(QUANTITIES["perplexity"], runs, nothing)
    assert difference is not None
    assert verdict == UNKNOWN
    assert "post has not learned" in why
    assert compare_runs(QUANTITIES["perplexity"], runs, [])[:2] == (None, NOT_RUN)


@pytest.mark.parametrize("failure", [{"diverged": True}, {"over_token_frequencies": Estimate(0.0, (-0.1, 0.1))}])
def test_one_seed_that_fails_is_not_left_out(failure: dict[str, Any]) -> None:
    """The seeds that remain would be a selection, although there are enough of them for an interval."""
    runs = [run_result("pre", seed, 1.0 + seed / 10) for seed in range(4)]
    others = [run_result("post", seed, 3.0 + seed / 100) for seed in range(4)]
    assert compare_runs(QUANTITIES["perplexity"], runs, others)[1] == ""
    others[2] = replace(others[2], **failure)
    _, verdict, why = compare_runs(QUANTITIES["perplexity"], runs, others)
    assert verdict == UNKNOWN
    assert why == "post has not learned more than the frequencies with seed 2"


@pytest.mark.parametrize(
    ("learned", "verdict"), [([], NOT_RUN), ([False] * 3, AGREES), ([True] * 3, DISAGREES), ([True, False], UNKNOWN)]
)
def test_a_claim_that_a_scheme_does_not_train(learned: list[bool], verdict: str) -> None:
    from mixln.studies.reproduce.specification import Claim
    from mixln.studies.reproduce.verdicts import _test

    runs = [run_result("post", seed, 3.0, learned=one) for seed, one in enumerate(learned)]
    claim = Claim("it does not train", does_not_learn=["a"])
    found = _test(claim, QUANTITIES["perplexity"], {Cell("a", "c", ""): runs}, "c", "")
    assert found.verdict == verdict
    assert bool(found.why) == (verdict != AGREES)


def test_quantities_of_series_are_what_they_say() -> None:
    run = run_result("pre", 0, 0.5)
    assert QUANTITIES["removal_deep"].of(run) == pytest.approx((0.5 + 1.0) / 2)
    # the first row of the triangle alone: single layers
    assert QUANTITIES["angular_distance_deep"].of(run) == pytest.approx((0.2 + 0.1) / 2)
    assert QUANTITIES["variance_growth"].of(run) is None
    assert QUANTITIES["perplexity"].compare(run) == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "Sandwich"}, "names 'Sandwich', which is not among Pre-LN, Post-LN"),
        ({"claims": [{"says": "x"}]}, "must have one of `lower` and `does_not_learn`"),
        ({"claims": [{"says": "x", "lower": ["Pre-LN"]}]}, "at least two rows"),
        ({"claims": [{"says": "x", "lower": ["Pre-LN", "Post"]}]}, "names 'Post'"),
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "two rows have the same name"),
        ({"conditions": {"tiny": {"seeds": [0]}}}, "names 'tiny', which is not among nano, small, paper"),
        ({"conditions": {"nano": {"seeds": [0], "learning_rates": [-1.0]}}}, "must be more than 0"),
        ({"surprise": 1}, "has the unknown surprise"),
        ({"quantity": "perplexty"}, "there is no quantity 'perplexty'. Did you mean 'perplexity'?"),
        ({"conditions": {"small": {"seeds": [0]}}}, "has no runs at the scale nano"),
        ({"conditions": {"nano": {"seeds": []}}}, "no seeds: give at least one"),
        ({"conditions": {"nano": {"seeds": [0, 0, 1]}}}, "seeds: 0 is given twice"),
        ({"conditions": {"nano": {"seeds": [-1]}}}, "must not be negative"),
        ({"conditions": {"nano": {"seeds": [0], "learning_rates": [1e-3, 1e-3]}}}, "0.001 is given twice"),
        ({"rows": [{"name": "Pre-LN", "learning_rates": {"nano": [1.0, 1.0]}}]}, "learning_rates.nano: 1.0 is given"),
        ({"rows": [], "baseline": "", "claims": []}, "has no rows"),
        ({"columns": []}, "has no columns"),
        ({"columns": [{"name": "1B", "settings": {"nano": {"tokens": "2M"}}}]}, "must name a recipe"),
        ({"columns": [{"name": "1B", "settings": {"nano": {"recipe": "nano", "seed": 1}}}]}, "must not have a seed"),
        (
            {"columns": [{"name": "1B", "settings": {"nano": {"recipe": "nano", "learning_rate": 1e-3}}}]},
            "learning_rate is set, and the runs have other learning rates",
        ),
        ({"columns": [{"name": "1B", "settings": {"nano": {"recipe": 5}}}]}, "must name a recipe, as text, not 5"),
        ({"claims": [{"says": "x", "lower": ["Pre-LN", "Pre-LN"]}]}, "'Pre-LN' is given twice"),
        ({"rows": [{"name": "Pre-LN", "published": {"1B": 0}}], "claims": []}, "which is no validation perplexity"),
        ({"rows": [{"name": "Pre-LN", "published": {"1B": math.nan}}], "claims": []}, "has nan published for 1B"),
        ({5: 1}, "table.yaml: has the unknown 5"),
    ],
)
def test_a_wrong_table_is_refused_in_one_message(
    changes: dict[Any, Any], message: str, short: Recipe, tmp_path: Path
) -> None:
    path = write_table(short, tmp_path)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    with pytest.raises(InputError) as caught:
        mixln.reproduce(str(path), out=tmp_path / "out", cache=tmp_path / "cache")
    assert message in str(caught.value)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no table or figure 'mix-ln/alfa'. Did you mean 'mix-ln/alpha'"):
        mixln.reproduce("mix-ln/alfa")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        mixln.reproduce("nowhere.yaml")
    with pytest.raises(InputError, match="named twice"):
        mixln.reproduce(["mix-ln/alpha", "mix-ln/alpha"])
    with pytest.raises(InputError, match="about tables: name one"):
        mixln.reproduce(plan="cpu")
    with pytest.raises(InputError, match=r"`plan=h10`: no such device. Did you mean 'h100'"):
        mixln.reproduce("mix-ln/alpha", plan="h10", out=tmp_path)


def test_two_tables_of_one_name_are_refused(short: Recipe, tmp_path: Path) -> None:
    paths = [str(write_table(short, tmp_path / name)) for name in ("a", "b")]
    with pytest.raises(InputError, match="two tables would be called table"):
        mixln.reproduce(paths, out=tmp_path / "out")


def test_numbers_in_a_table_may_be_written_as_people_do(tmp_path: Path) -> None:
    """YAML reads 1e-3 as text."""
    table = yaml.safe_dump({**TABLE, "columns": [{"name": "1B", "settings": {"nano": {"recipe": "nano"}}}]})
    path = tmp_path / "table.yaml"
    path.write_text(table.replace("- 0.001", "- 1e-3"))
    assert load_specification(str(path)).conditions["nano"].learning_rates == [1e-3, 3e-3]


@pytest.mark.parametrize("part", ["rows", "columns"])
def test_a_table_of_recipes_without_one_is_refused(part: str, tmp_path: Path) -> None:
    specs = Path(runs_module.__file__).with_name("specs")
    wrong = yaml.safe_load((specs / "mix-ln" / "hyperparameters.yaml").read_text())
    wrong[part][0]["settings"] = {}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(InputError, match=r"must name a (recipe|field)"):
        mixln.reproduce(str(tmp_path / "wrong.yaml"), scale="paper", out=tmp_path / "out")


@pytest.mark.slow
def test_killed_twice_and_shared_by_two_processes_it_ends_the_same(
    made: tuple[Path, ReproductionReport], short: Recipe, tmp_path: Path
) -> None:
    _, whole = made
    path = write_table(short, tmp_path)
    command = [sys.executable, "-m", "mixln", "reproduce", str(path), "--out", str(tmp_path / "out")]
    command += ["--cache", str(tmp_path / "cache")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finished() -> list[Path]:
        return sorted((tmp_path / "out").glob("runs/*/result.json"))

    for number in (1, 3):
        process = start()
        while len(finished()) < number and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    times = {result: result.stat().st_mtime_ns for result in finished()}
    both = [start(), start()]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert all(result.stat().st_mtime_ns == times[result] for result in times), "a finished run was made again"
    (table,) = stored_tables(tmp_path / "out")
    assert table.cells == whole.tables[0].cells
    assert len(finished()) == 8
    assert (tmp_path / "out" / CLAIMS_FOLDER).is_dir()
