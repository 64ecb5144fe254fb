from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from mixln.errors import InputError
from mixln.report import ComparisonResult, CurvePoint, RunResult, from_json, to_json
from mixln.report.depth_report import DepthReport


def test_a_comparison_survives_exactly(make_result):
    result = make_result(3, 3, rates=(1 / 3000, 1e-3), no_depth=("lns",))
    assert from_json(to_json(result)) == result


def test_results_of_the_version_before_are_read(make_result):
    result = make_result(2, 3)
    document = json.loads(to_json(result)) | {"schema_version": 4}
    for name in ("class_constants", "quantities", "values", "terms"):
        del document[name]
    for run in document["runs"]:
        for name in ("values", "value_curves", "over_class_frequencies", "over_most_frequent_class"):
            del run[name]
    assert from_json(json.dumps(document)) == result
    document |= {"schema_version": 2}
    del document["constants"]
    for run in document["runs"]:
        del run["over_token_frequencies"]
    for summary in document["summaries"]:
        del summary["without_order"]
    assert from_json(json.dumps(document)) == result
    with pytest.raises(InputError, match=r"schema_version 1, and this version of mixln reads 2 to 5"):
        from_json(json.dumps(document | {"schema_version": 1}))


def test_a_run_survives_exactly_with_nested_configuration(make_run):
    run = replace(make_run(loss=0.1 + 0.2), config={"a": [1, 2.5, None, {"b": True}], "c": 1e-300, "d": "é<"})
    assert from_json(to_json(run), RunResult) == run


def test_divergence_is_strict_json_and_comes_back(make_run):
    run = make_run(diverged=True)
    assert math.isnan(run.train_curve[-1].loss)
    text = to_json(run)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = from_json(text, RunResult)
    assert math.isnan(again.train_curve[-1].loss)
    assert again.validation_loss is None
    assert again.depth is None
    assert again.train_curve[:-1] == run.train_curve[:-1]


def test_infinity_is_not_written(make_run):
    run = replace(make_run(), train_curve=[CurvePoint(1, 1, math.inf)], perplexity=math.inf)
    document = json.loads(to_json(run))
    assert document["train_curve"][0]["loss"] is None
    assert from_json(to_json(run), RunResult).perplexity is None


def test_intervals_come_back_as_tuples(make_result):
    again = from_json(to_json(make_result(2, 3)))
    difference = again.summaries[1].difference
    assert difference is not None
    assert isinstance(difference.interval, tuple)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=99), "schema_version 99"),
        (lambda d: d.pop("schema_version"), "no 'schema_version'"),
        (lambda d: d["runs"][1].pop("seed"), r"runs\[1\] lacks seed"),
        (lambda d: d["runs"][0].update(sed=1), r"runs\[0\] has the unknown sed"),
        (lambda d: d["runs"][0].update(seed="1"), r"runs\[0\].seed must be a whole number, not '1'"),
        (lambda d: d["runs"][0].update(seed=True), r"runs\[0\].seed must be a whole number"),
        (lambda d: d["runs"][0].update(seconds=True), r"runs\[0\].seconds must be a number"),
        (lambda d: d["summaries"][1]["difference"].update(interval=[1.0]), r"summaries\[1\].difference.interval"),
        (lambda d: d.update(facts={"a": 1}), "facts.a must be text"),
        (lambda d: d.update(runs=[3]), r"runs\[0\] must be an object"),
    ],
)
def test_a_bad_file_is_an_input_error_that_names_the_place(make_result, change, message):
    document = json.loads(to_json(make_result(2, 3)))
    change(document)
    with pytest.raises(InputError, match=message):
        from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1}'])
def test_what_is_no_results_file_says_so(text):
    with pytest.raises(InputError, match="Not a results file"):
        from_json(text)


@pytest.mark.parametrize("config", [{"path": Path("a")}, {"deep": [{1: 2}]}])
def test_what_json_cannot_hold_is_named(make_run, config):
    with pytest.raises(TypeError, match=r"RunResult\.config\.(path|deep\[0\])"):
        to_json(replace(make_run(), config=config))


@pytest.mark.parametrize("kind", [ComparisonResult, RunResult, DepthReport])
@pytest.mark.parametrize(
    "value",
    ["1" + "0" * 400, "1" + "0" * 5000, "[" * 200 + "]" * 200, "[" * 100_000 + "]" * 100_000],
    ids=["no float", "no integer", "deep", "deeper than Python reads"],
)
def test_numbers_and_nesting_beyond_what_can_be_used_are_refused(kind: type, value: str) -> None:
    text = f'{{"schema_version": 1, "command": {value}}}'
    with pytest.raises(InputError, match="Not a results file"):
        from_json(text, kind)
