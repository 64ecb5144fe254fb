from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mixln.confidence import student_t_two_sided
from mixln.errors import InputError
from mixln.report import summarize
from mixln.report.statistics import best_summary


@pytest.mark.parametrize(
    ("degrees_of_freedom", "expected"),
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (9, 2.262157), (30, 2.042272), (120, 1.979930)],
)
def test_student_quantiles_are_those_of_the_tables(degrees_of_freedom, expected):
    assert student_t_two_sided(0.95, degrees_of_freedom) == pytest.approx(expected, abs=1e-6)


def test_student_quantiles_of_other_levels():
    assert student_t_two_sided(0.99, 5) == pytest.approx(4.032143, abs=1e-6)
    assert student_t_two_sided(0.5, 1) == pytest.approx(1.0, abs=1e-12)
    assert student_t_two_sided(0.95, 1000) == pytest.approx(1.962339, abs=1e-6)


def test_means_spreads_and_paired_differences_by_hand(make_run):
    base, other = (4.0, 4.2, 4.4), (3.9, 4.15, 4.2)
    runs = [make_run("pre", seed, loss=loss) for seed, loss in enumerate(base)]
    runs += [make_run("lns", seed, loss=loss) for seed, loss in enumerate(other)]
    summaries, grid = summarize(runs, "pre")
    pre, lns = summaries
    assert (pre.placement, pre.seeds, pre.diverged, pre.difference) == ("pre", 3, 0, None)
    assert pre.loss_mean == pytest.approx(4.2)
    assert pre.loss_spread == pytest.approx(0.2)
    assert pre.perplexity_mean == pytest.approx(sum(map(math.exp, base)) / 3)
    # differences -0.1, -0.05, -0.2: mean -7/60, sample standard deviation 0.0763763
    assert lns.difference is not None
    assert lns.difference.seeds == 3
    assert lns.difference.mean == pytest.approx(-7 / 60)
    half_width = 4.302653 * 0.0763763 / math.sqrt(3)
    assert lns.difference.interval == pytest.approx((-7 / 60 - half_width, -7 / 60 + half_width), abs=1e-6)
    assert [(point.placement, point.seeds) for point in grid] == [("pre", 3), ("lns", 3)]


def test_only_common_finished_seeds_are_paired(make_run):
    runs = [make_run("pre", 0, loss=4.0), make_run("pre", 1, loss=4.1), make_run("pre", 2, diverged=True)]
    runs += [make_run("lns", seed, loss=3.5 + seed) for seed in (1, 2, 3)]
    _, lns = summarize(runs, "pre")[0]
    assert lns.difference is not None
    assert (lns.difference.seeds, lns.difference.interval) == (1, None)
    assert lns.difference.mean == pytest.approx(0.4)
    assert lns.seeds == 3


def test_without_a_common_seed_there_is_no_difference(make_run):
    _, lns = summarize([make_run("pre", 0), make_run("lns", 1)], "pre")[0]
    assert lns.difference is None


def test_one_seed_has_no_spread_and_two_no_interval(make_run):
    one = summarize([make_run("pre", 0)], None)[0][0]
    assert one.loss_spread is None
    two = summarize([make_run(name, seed) for name in ("pre", "lns") for seed in (0, 1)], "pre")[0][1]
    assert two.loss_spread is not None
    assert two.difference is not None
    assert two.difference.interval is None


def test_each_scheme_is_judged_at_its_own_best_learning_rate(make_run):
    runs = [make_run("pre", seed, 1e-3, loss=4.0) for seed in (0, 1)]
    runs += [make_run("pre", seed, 3e-3, loss=4.5) for seed in (0, 1)]
    runs += [make_run("lns", seed, 1e-3, loss=4.2) for seed in (0, 1)]
    runs += [make_run("lns", seed, 3e-3, loss=3.8) for seed in (0, 1)]
    summaries, grid = summarize(runs, "pre")
    assert [summary.learning_rate for summary in summaries] == [1e-3, 3e-3]
    assert summaries[1].difference is not None
    assert summaries[1].difference.mean == pytest.approx(-0.2)
    assert [point.loss_mean for point in grid] == pytest.approx([4.0, 4.5, 4.2, 3.8])


def test_a_learning_rate_with_a_diverged_seed_loses(make_run):
    runs = [make_run("pre", 0, 3e-3, loss=3.0), make_run("pre", 1, 3e-3, diverged=True)]
    runs += [make_run("pre", seed, 1e-3, loss=4.0) for seed in (0, 1)]
    (summary,), grid = summarize(runs, None)
    assert (summary.learning_rate, summary.diverged) == (1e-3, 0)
    assert [(point.learning_rate, point.loss_mean) for point in grid] == [(1e-3, 4.0), (3e-3, 3.0)]


def test_a_loss_that_is_not_finite_counts_as_diverged(make_run):
    runs = [replace(make_run("pre", 0), validation_loss=math.nan), make_run("pre", 1, loss=4.0)]
    (summary,), _ = summarize(runs, None)
    assert (summary.diverged, summary.loss_mean) == (1, 4.0)


def test_all_diverged_has_no_loss_and_no_best(make_run):
    summaries, grid = summarize([make_run("pre", seed, diverged=True) for seed in (0, 1)], "pre")
    assert (summaries[0].loss_mean, summaries[0].perplexity_mean, summaries[0].diverged) == (None, None, 2)
    assert grid[0].loss_mean is None
    assert best_summary(summaries) is None


def test_the_best_scheme_is_one_without_divergence(make_run):
    runs = [make_run("post", 0, loss=3.0), make_run("post", 1, diverged=True)]
    runs += [make_run("pre", seed, loss=4.0) for seed in (0, 1)]
    best = best_summary(summarize(runs, None)[0])
    assert best is not None
    assert best.placement == "pre"


def test_schemes_keep_the_order_in_which_they_first_appear(make_run):
    runs = [make_run(name, seed) for seed in (0, 1) for name in ("post", "admin", "pre")]
    assert [summary.placement for summary in summarize(runs, "pre")[0]] == ["post", "admin", "pre"]


def test_an_unknown_baseline_is_an_input_error(make_run):
    with pytest.raises(InputError, match=r"'lns' is not among .*pre"):
        summarize([make_run("pre")], "lns")


def test_a_seed_does_not_count_twice(make_run):
    run = make_run("pre", 0)
    with pytest.raises(InputError, match=r"seed 0 .*embedding_std 0.02 and 0.632"):
        summarize([run, replace(run, embedding_std=0.632)], None)


def test_nothing_gives_nothing():
    assert summarize([], None) == ([], [])
