from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from mixln.report import cells, grid_table, markdown_table, summary_table
from mixln.report.aggregate import depth_of
from mixln.report.headline import findings, headline
from mixln.report.results import Constants, Difference
from mixln.report.series import Estimate
from mixln.report.statistics import summarize
from mixln.report.style import wrap_label
from mixln.report.tables import summary_cells


def render(table) -> str:
    console = Console(width=140, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def losses_to_result(make_run, make_result, **losses):
    runs = [make_run(name, seed, loss=value) for name, group in losses.items() for seed, value in enumerate(group)]
    summaries, grid = summarize(runs, "pre" if "pre" in losses else None)
    return replace(
        make_result(1, 1), runs=runs, summaries=summaries, grid=grid, baseline="pre" if "pre" in losses else None
    )


def test_the_terminal_table_holds_every_scheme_and_number(make_result):
    result = make_result(13, 3)
    text = render(summary_table(result))
    for summary in result.summaries:
        assert summary.placement.split("+")[0] in text
        assert cells.loss(summary) in text
    assert "baseline" in text
    assert "95 % CI" in text.replace("\n", " ")
    assert "diverged" not in text


def test_the_terminal_table_loses_no_number_on_80_columns(make_result):
    result = make_result(13, 3, diverged=(("lns", 1),))
    console = Console(width=80)
    with console.capture() as capture:
        console.print(summary_table(result))
    text = capture.get()
    for summary in result.summaries:
        assert cells.number(summary.loss_mean) in text
        assert cells.number(summary.loss_spread) in text
        assert cells.perplexity(summary.perplexity_mean) in text
        if summary.difference is not None:
            assert f"{summary.difference.mean:+.3f}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_no_word_of_the_terminal_table_is_broken_on_80_columns(make_result):
    result = make_result(13, 3, rates=(1e-3, 3e-3), diverged=(("lns", 1),), baseline="hybrid(first_pre=true)")
    for table in (summary_table(result), grid_table(result)):
        console = Console(width=80)
        with console.capture() as capture:
            console.print(table)
        text = capture.get()
        for summary in result.summaries:
            for term in wrap_label(summary.placement, 24).splitlines():
                assert term in text
        assert max(map(len, text.splitlines())) <= 80
    with console.capture() as capture:
        console.print(summary_table(result))
    words = capture.get().split()
    assert {"learning", "perplexity", "difference", "baseline", "diverged"} <= set(words)


def test_a_label_is_text_and_not_markup(make_result):
    result = make_result(["pre", "[red]x[/red]"], 1)
    assert "[red]x[/red]" in render(summary_table(result))


def test_diverged_runs_are_counted(make_result):
    result = make_result(3, 3, diverged=(("lns", 1),))
    assert "| 1 of 3 diverged |" in markdown_table(result)
    text = render(summary_table(result))
    assert "1 of 3" in text
    assert "means leave out diverged runs" in text


def test_there_is_a_grid_only_for_several_learning_rates(make_result):
    assert grid_table(make_result(2, 1)) is None
    table = grid_table(make_result(2, 1, rates=(1e-3, 3e-3), diverged=(("pre", 3e-3),)))
    assert table is not None
    assert "diverged" in render(table)


def test_markdown_marks_the_best_and_escapes_bars(make_result):
    result = make_result(["pre", "a|b"], 3)
    lines = markdown_table(result).splitlines()
    assert lines[1].count("|") == lines[0].count("|")
    assert sum(line.startswith("| **`") for line in lines) == 1
    assert "a\\|b" in markdown_table(result)
    assert "by learning rate" in markdown_table(make_result(2, 1, rates=(1e-3, 3e-3)))


@pytest.mark.parametrize(
    ("value", "text"), [(1e-3, "1e-3"), (5e-4, "5e-4"), (2.5e-4, "2.5e-4"), (0.03, "3e-2"), (1.0, "1e0")]
)
def test_learning_rates_read_as_people_write_them(value, text):
    assert cells.learning_rate(value) == text


def test_numbers_read_well():
    assert cells.difference(Difference(-0.0451, (-0.0812, 0.009), 3)) == "-0.045 [-0.081, +0.009]"
    assert cells.perplexity(1409.2) == "1,409"
    assert cells.number(float("nan")) == cells.MISSING
    assert [cells.tokens(n) for n in (12, 3_276_800, 1.3e9)] == ["12", "3.28M", "1.3B"]
    assert [cells.duration(s) for s in (42, 200, 7500)] == ["42 s", "3 min 20 s", "2 h 05 min"]


def is_coloured(result) -> bool:
    return summary_cells(result).best is not None


def test_a_clear_difference_is_headlined(make_run, make_result):
    result = losses_to_result(make_run, make_result, pre=(4.30, 4.32, 4.34), lns=(4.20, 4.221, 4.239))
    assert headline(result).startswith("`lns` has the lowest mean validation loss")
    assert "0.100 below `pre` over 3 seeds (95 % confidence interval -0.10" in headline(result)
    assert is_coloured(result)
    assert "| **`lns`** |" in markdown_table(result)


def test_a_difference_whose_interval_holds_zero_cannot_be_told(make_run, make_result):
    result = losses_to_result(make_run, make_result, pre=(4.30, 4.32, 4.34), lns=(4.20, 4.40, 4.30))
    assert headline(result).startswith("Whether `lns` is better than the baseline `pre` cannot be told")
    assert "which holds zero" in headline(result)
    assert not is_coloured(result)
    assert "**" not in markdown_table(result)


def test_with_few_seeds_nothing_can_be_told(make_run, make_result):
    result = losses_to_result(make_run, make_result, pre=(4.3,), lns=(4.2,))
    assert "cannot be told" in headline(result)
    assert "0.100 below `pre`, on one seed; an interval needs 3 seeds" in headline(result)
    assert any("the order may be noise" in finding for finding in findings(result))
    assert not is_coloured(result)


def test_a_baseline_wins_only_if_all_others_are_worse(make_run, make_result):
    losses = {"pre": (4.1, 4.12, 4.11), "lns": (4.2, 4.221, 4.21)}
    result = losses_to_result(make_run, make_result, **losses, post=(4.2, 4.0, 4.3))
    assert headline(result).startswith("Which scheme is best cannot be told: the baseline `pre` has the lowest")
    assert "worse: `lns`; cannot be told: `post`" in findings(result)[0]
    assert "not corrected" in findings(result)[0]
    assert not is_coloured(result)
    result = losses_to_result(make_run, make_result, **losses)
    assert headline(result).endswith("every other scheme is distinguishably worse.")
    assert is_coloured(result)


def test_divergence_is_said_and_never_wins(make_result):
    result = make_result(3, 3, diverged=(("mix(alpha=0.25)", 0), "lns"))
    assert "the baseline `pre` has the lowest mean validation loss among the schemes without a" in headline(result)
    assert any("`mix(alpha=0.25)` (1 of 3), `lns` (all of 3)" in finding for finding in findings(result))
    assert "Every run diverged" in headline(make_result(2, 1, diverged=("pre", "mix(alpha=0.25)")))


def with_constants(result, **over):
    """Token frequencies at 4.5, and schemes whose runs are so far over them, with an interval of 0.1 to each side."""
    runs = [
        replace(run, over_token_frequencies=Estimate(value, (value - 0.1, value + 0.1)))
        for run in result.runs
        for value in [over.get(run.placement, -0.5)]
    ]
    summaries, grid = summarize(runs, result.baseline)
    constants = Constants(4.5, 3.2, 1_000_000, 2_000_000, 30_000)
    return replace(result, runs=runs, summaries=summaries, grid=grid, constants=constants)


def test_a_scheme_without_word_order_is_not_ranked(make_run, make_result):
    losses = {"pre": (4.30, 4.32, 4.34), "lns": (4.20, 4.221, 4.239), "post": (4.1, 4.1, 4.1)}
    result = with_constants(losses_to_result(make_run, make_result, **losses), post=-0.05)
    assert headline(result).startswith(
        "`lns` has the lowest mean validation loss among the schemes that have learned word order"
    )
    (first, *_) = findings(result)
    assert "not learned word order: `post` (3 of 3)" in first
    assert "4.500 nats per token" in first
    post = result.summaries[2]
    assert (post.without_order, post.difference) == (3, None)
    table = markdown_table(result)
    assert "| 3 of 3 have not learned word order |" in table
    assert "**`lns`**" in table
    assert "post" not in depth_of(replace(result, runs=[replace(run, depth={}) for run in result.runs]))


def test_constants_are_rows_of_every_table(make_result):
    result = with_constants(make_result(3, 3, rates=(1e-3, 3e-3)), lns=0.3)
    for line in ("| token frequencies |  | 4.500 | 90.02 |", "| token frequencies | 4.500 | 4.500 |"):
        assert line in markdown_table(result)
    for table in (summary_table(result), grid_table(result)):
        console = Console(width=80)
        with console.capture() as capture:
            console.print(table)
        text = capture.get()
        assert "token frequencies" in text
        assert "token pairs" in text
        assert "4.500" in text
        assert max(map(len, text.splitlines())) <= 80
    assert "1,000,000 of 2,000,000 training tokens" in markdown_table(result)


def test_where_no_scheme_has_learned_word_order_nothing_is_ranked(make_run, make_result):
    result = with_constants(losses_to_result(make_run, make_result, pre=(4.6,), lns=(4.5,)), pre=0.1, lns=0.0)
    assert headline(result).startswith("No scheme has learned word order, so there is nothing to rank: a run has")
    assert not is_coloured(result)
    result = with_constants(losses_to_result(make_run, make_result, pre=(4.6,), lns=(4.4,)), pre=0.1)
    assert headline(result).endswith("the baseline `pre` is not ranked.")
    assert not is_coloured(result)


def test_one_scheme_and_no_baseline_have_sentences_too(make_result):
    assert "`pre` reaches" in headline(make_result(1, 1))
    result = make_result(3, 3, baseline=None)
    assert "baseline" not in headline(result)
    assert any("No baseline was named" in finding for finding in findings(result))
