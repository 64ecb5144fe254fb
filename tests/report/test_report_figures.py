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
from mixln.report.aggregate import mean_angular_distance, mean_curve
from mixln.report.results import CurvePoint
from mixln.report.style import scheme_styles, wrap_label

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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", figures.FIGURES, ids=lambda kind: kind.name)
def test_every_figure_is_drawn(make_result, case, kind):
    figure = kind.draw(make_result(**CASES[case]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(BytesIO(), format="png", dpi=40)


def test_a_missing_scheme_is_noted(make_result):
    result = make_result(3, 1, no_depth=("lns",))
    for draw in (figures.gradient_norms, figures.angular_distance_heatmaps, figures.removal_loss, figures.variance):
        assert "not measured: lns" in text_of(draw(result))


def test_one_panel_of_each_kind_a_scheme(make_result):
    result = make_result(5, 1)
    assert {summary.placement for summary in result.summaries} <= set(
        text_of(figures.angular_distance_heatmaps(result)).split()
    )


def test_a_layer_that_dwarfs_the_others_carries_its_value(make_result):
    result = make_result(2, 1)
    assert "↑" in text_of(figures.removal_loss(result))
    runs = [
        replace(run, depth=replace(run.depth, removal_loss_increase=[0.1] * 12)) for run in result.runs if run.depth
    ]
    assert "↑" not in text_of(figures.removal_loss(replace(result, runs=runs)))


def test_depth_measures_that_are_not_finite_are_drawn(make_result):
    result = make_result(2, 2)
    runs = [
        replace(run, depth=replace(run.depth, variance=[math.nan] * 13, removal_loss_increase=[math.nan] * 12))
        for run in result.runs
        if run.depth
    ]
    for kind in figures.FIGURES:
        kind.draw(replace(result, runs=runs)).savefig(BytesIO(), format="png", dpi=40)


def test_depth_is_the_mean_over_seeds(make_result):
    result = make_result(1, 3)
    expected = sum(run.depth.angular_distance[4][2] for run in result.runs if run.depth) / 3
    matrix = mean_angular_distance(result)["pre"]
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


def test_files_are_the_same_each_time_and_stale_ones_go(make_result, tmp_path):
    first = figures.write_figures(make_result(1, 1, rates=(1e-3, 3e-3), layers=2), tmp_path)
    assert set(first) == {f"{kind.name}.{suffix}" for kind in figures.FIGURES for suffix in ("png", "svg")}
    result = make_result(2, 1, layers=2)
    before = {name: path.read_bytes() for name, path in figures.write_figures(result, tmp_path).items()}
    assert {path.name for path in tmp_path.iterdir()} == set(before)
    assert "learning_rate_grid.png" not in before
    after = {name: path.read_bytes() for name, path in figures.write_figures(result, tmp_path).items()}
    assert before == after
    assert b"<dc:date>" not in before["variance.svg"]


def test_a_folder_that_is_a_file_is_an_input_error(make_result, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="taken"):
        figures.write_figures(make_result(1, 1), tmp_path / "taken")


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
