from __future__ import annotations

import math
import subprocess
import sys
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from mixln.errors import InputError
from mixln.report import figures
from mixln.report.aggregate import depth_of, mean_curve, over_seeds, triangle_matrix
from mixln.report.depth_figures import draw_schemes
from mixln.report.drawing import FILE
from mixln.report.figure_files import write_drawings
from mixln.report.results import ComparisonResult, CurvePoint
from mixln.report.series import Estimate
from mixln.report.style import scheme_styles, wrap_label
from mixln.studies.compared_kinds import depth_figures

CASES = {
    "one scheme, one seed": {"schemes": 1, "seeds": 1},
    "four schemes, three seeds": {"schemes": 4, "seeds": 3},
    "thirteen schemes, forty layers": {"schemes": 13, "seeds": 2, "layers": 40},
    "two layers, no baseline": {"schemes": 3, "seeds": 2, "layers": 2, "baseline": None},
    "several learning rates": {"schemes": 3, "seeds": 1, "rates": (3e-4, 1e-3, 3e-3), "diverged": (("lns", 3e-3),)},
    "some without depth": {"schemes": 4, "seeds": 2, "no_depth": ("pre", ("lns", 0))},
    "some diverged": {"schemes": 3, "seeds": 2, "diverged": ("pre", ("lns", 1))},
    "all diverged": {"schemes": 2, "seeds": 2, "diverged": ("pre", "mix(alpha=0.25)")},
}


def text_of(figure: Figure) -> str:
    return " ".join(artist.get_text() for artist in figure.findobj(Text) if isinstance(artist, Text))


DEPTH_FIGURES = {spec.name: spec for spec in depth_figures()}
NAMES = [*(kind.name for kind in figures.FIGURES), *DEPTH_FIGURES]


def draw_or_none(name: str, result: ComparisonResult) -> Figure | None:
    kinds = {kind.name: kind for kind in figures.FIGURES}
    drawing = kinds[name].draw(result, FILE) if name in kinds else draw_schemes(DEPTH_FIGURES[name], result)
    return None if drawing is None else drawing.figure


def draw(name: str, result: ComparisonResult) -> Figure:
    figure = draw_or_none(name, result)
    assert figure is not None
    return figure


def with_depth(result: ComparisonResult, **values: float) -> ComparisonResult:
    """The comparison with one number in place of all of some series."""

    def changed(run):
        series = {
            name: replace(run.depth[name], estimates=[Estimate(value)] * len(run.depth[name].estimates))
            for name, value in values.items()
        }
        return replace(run, depth=run.depth | series)

    return replace(result, runs=[changed(run) for run in result.runs if run.depth])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_drawn(make_result, case, name):
    figure = draw_or_none(name, make_result(**CASES[case]))
    has_nothing = (
        case == "all diverged" if name in DEPTH_FIGURES else name == "learning_rate_grid" and "rates" not in CASES[case]
    )
    assert (figure is None) is has_nothing
    if figure is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(BytesIO(), format="png", dpi=40)


def test_a_missing_scheme_is_noted(make_result):
    result = make_result(3, 1, no_depth=("lns",))
    assert set(DEPTH_FIGURES) == {"gradient_norm", "angular_distance", "removal", "variance"}
    for name in DEPTH_FIGURES:
        assert "not measured: lns" in text_of(draw(name, result))


def test_one_panel_of_each_kind_a_scheme(make_result):
    result = make_result(5, 1)
    assert {summary.placement for summary in result.summaries} <= set(text_of(draw("angular_distance", result)).split())


def test_a_layer_that_dwarfs_the_others_carries_its_value(make_result):
    result = make_result(2, 1)
    assert "↑" in text_of(draw("removal", result))
    assert "↑" not in text_of(draw("removal", with_depth(result, removal=0.1)))


def test_depth_measures_that_are_not_finite_are_drawn(make_result):
    result = with_depth(make_result(2, 2), variance=math.nan, removal=math.nan)
    for name in ("loss_curves", *DEPTH_FIGURES):
        draw(name, result).savefig(BytesIO(), format="png", dpi=40)


@pytest.mark.parametrize(("low", "high", "is_cut"), [(-1.0, -0.9, False), (-1.0, 0.5, True)])
def test_whiskers_of_negative_bars_are_shown_or_said_to_go_on(make_result, low, high, is_cut):
    result = with_depth(make_result(1, 2), removal=low)
    one, other = result.runs
    (other,) = with_depth(replace(result, runs=[other]), removal=high).runs
    (ax,) = draw("removal", replace(result, runs=[one, other])).axes
    bottom, top = ax.get_ylim()
    assert (bottom < low < high < top) is not is_cut
    assert ("intervals end at -1 to -1" in ax.get_title(loc="left")) is is_cut


def test_depth_is_the_mean_over_seeds(make_result):
    result = make_result(1, 3)
    series = [run.depth["angular_distance"] for run in result.runs if run.depth]
    expected = sum(one.triangle()[4][2] for one in series) / 3
    assert depth_of(result)["pre"][1]["angular_distance"] is series[1]
    matrix = triangle_matrix(over_seeds(series).mean)
    assert matrix[4, 2] == pytest.approx(expected)
    assert math.isnan(matrix[4, 8])


def test_a_mean_curve_covers_what_all_seeds_reached():
    first = [CurvePoint(step, step * 10, float(step)) for step in (0, 2, 4, 6)]
    second = [CurvePoint(step, step * 10, float(step) + 1) for step in (0, 1, 4)] + [CurvePoint(5, 50, math.nan)]
    band = mean_curve([first, second])
    assert band is not None
    assert band.x.tolist() == [0, 10, 20, 40]
    assert band.mean.tolist() == [0.5, 1.5, 2.5, 4.5]
    assert mean_curve([[], [CurvePoint(0, 0, math.inf)]]) is None


def test_schemes_look_different_and_the_baseline_is_grey(make_result):
    styles = scheme_styles(make_result(13, 1))
    assert len({(style.color, style.line) for style in styles.values()}) == 13
    assert styles["pre"].color not in {style.color for name, style in styles.items() if name != "pre"}


def test_labels_wrap_before_modifiers():
    assert wrap_label("mix(post_layers=2)+scaled_init+scaled_embed") == "mix(post_layers=2)\n+scaled_init+scaled_embed"
    assert wrap_label("x" * 60).splitlines() == ["x" * 26, "x" * 26, "x" * 8]


def written(result: ComparisonResult, folder: Path) -> dict[str, bytes]:
    write_drawings(figures.draw_figures(result), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_the_same_each_time_and_stale_ones_go(make_result, tmp_path):
    first = written(make_result(1, 1, rates=(1e-3, 3e-3), layers=2), tmp_path)
    assert set(first) == {f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")}
    result = make_result(2, 1, layers=2)
    before = written(result, tmp_path)
    assert set(before) == {f"{name}.{end}" for name in NAMES if name != "learning_rate_grid" for end in ("png", "svg")}
    assert before == written(result, tmp_path)
    assert b"<dc:date>" not in before["variance.svg"]


def test_a_folder_that_is_a_file_is_an_input_error(make_result, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="taken"):
        written(make_result(1, 1), tmp_path / "taken")


def test_the_package_imports_without_matplotlib_or_jinja():
    # mixln itself imports torch; what counts is what report adds.
    program = (
        "import sys, types, pathlib; package = types.ModuleType('mixln');"
        "package.__path__ = [sys.argv[1]]; sys.modules['mixln'] = package;"
        "import mixln.report; heavy = {'matplotlib', 'jinja2', 'torch', 'transformers', 'numpy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    package = str(Path(figures.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", program, package], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
