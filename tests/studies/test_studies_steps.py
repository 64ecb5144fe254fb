"""`mixln compare ... --then finetune=DATA --then evaluate=TASKS`, and `mixln.compare(then=...)`."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from processes import forkserver

import mixln
from mixln.cli import main
from mixln.commands.arguments import find_interface
from mixln.commands.steps import STEPS
from mixln.errors import InputError
from mixln.report import from_json
from mixln.report.comparison import Comparison
from mixln.report.statistics import step_changes, summarize_step
from mixln.report.step_results import Quantity, StepResult, StepRun
from mixln.report.step_tables import step_cells
from mixln.studies import fine_tuned_model
from mixln.studies.compare import plan_jobs
from mixln.studies.steps.fine_tuning_step import OUTCOME_FILE
from mixln.tasks import Recipe
from mixln.training import differences
from tasks import make_items, write_task

pytest.importorskip("lm_eval", reason="needs mixln[evaluation]")

TUNING: dict[str, Any] = {
    "epochs": 1.0,
    "batch_size": 2,
    "sequence_length": 48,
    "learning_rate": 1e-2,
    "validation_fraction": 0.3,
    "precision": "float32",
    "checkpoint_every": 100,
}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module")
def rows(folder: Path) -> Path:
    examples = [{"prompt": f"is {number} even? ", "completion": ("yes", "no")[number % 2]} for number in range(40)]
    return write(folder / "even.jsonl", examples)


@pytest.fixture(scope="module")
def tasks(folder: Path) -> list[str]:
    items = make_items(45)
    return [str(write(folder / "first.jsonl", items[:20])), str(write(folder / "second.jsonl", items[20:]))]


@pytest.fixture(scope="module")
def short(recipe: Recipe) -> Recipe:
    return replace(recipe, steps=4, model=replace(recipe.model, num_hidden_layers=2))


@pytest.fixture(scope="module")
def request_(short: Recipe, folder: Path, rows: Path, tasks: list[str]) -> dict[str, Any]:
    evaluation = {"evaluate": tasks, "batch_size": 16}
    return {
        "schemes": ["pre", "mix(alpha=0.5)"],
        "seeds": [0, 1],
        "recipe": short,
        "cache": folder / "cache",
        "then": [evaluation, {"finetune": rows, **TUNING}, evaluation],
    }


def compared(request: dict[str, Any], out: Path, **changes: Any) -> Comparison:
    wanted: Any = request | changes
    return mixln.compare(**wanted, out=out)


@pytest.fixture(scope="module")
def result(request_: dict[str, Any], folder: Path) -> Comparison:
    return compared(request_, folder / "whole")


def test_every_run_goes_through_every_step(result: Comparison, folder: Path) -> None:
    titles = ["Scores on first, second", "Fine-tuning on even.jsonl", "Scores on first, second, after finetune="]
    for step, title in zip(result.then, titles, strict=True):
        assert step.title.startswith(title)
        assert [(run.placement, run.seed) for run in step.runs] == [
            (placement, seed) for placement in ("pre", "mix(alpha=0.5)") for seed in (0, 1)
        ]
        assert all(set(run.values) == {one.name for one in step.quantities} for run in step.runs)
        assert all((folder / "whole" / path).exists() for path in step.links.values())
    tuning = result.then[1]
    assert all(run.values["loss after"] < run.values["loss before"] for run in tuning.runs)
    assert "has not learned word order" in tuning.remarks[0]  # after four steps


def test_a_step_does_what_its_command_does_with_the_seed_of_the_run(
    result: Comparison, folder: Path, rows: Path, tasks: list[str], tmp_path: Path
) -> None:
    (source,) = folder.glob("whole/runs/mix-alpha-0.5_*_seed1_*/model")
    tuned = mixln.finetune(source, rows, out=tmp_path / "tuned", seed=1, **TUNING)
    before, tuning, after = (
        next(run for run in step.runs if run.is_of("mix(alpha=0.5)", 1, 5e-3)).values for step in result.then
    )
    assert tuning == {"loss before": tuned.report.loss_before, "loss after": tuned.report.loss_after}
    report = mixln.evaluate([source, tuned.folder], tasks=tasks, names=["before", "after"])
    for name, values in (("before", before), ("after", after)):
        scores = {one.task: one.score.value for one in report.scores if one.model == name}
        assert values == pytest.approx(scores | {"mean": sum(scores.values()) / 2})


def test_fine_tunings_differ_in_model_and_seed_and_nothing_else(result: Comparison, folder: Path) -> None:
    assert len(result.then) == 3
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("whole/then/finetune_*/*/recipe.json"))]
    assert len(found) == 4
    for other in found[1:]:
        changed = {line.split(" was ")[0] for line in differences(found[0], other)}
        assert changed <= {"seed", "model.sha256", "data.tokenizer"}  # the last is the name of the run


def test_differences_are_paired_by_seed_and_constants_are_rows(result: Comparison) -> None:
    after = result.then[2]
    values = {(run.placement, run.seed): run.values for run in after.runs}
    for quantity in ("first", "second", "mean"):
        summary = after.summary_of("mix(alpha=0.5)", quantity)
        assert summary is not None
        assert summary.difference is not None
        deltas = [values["mix(alpha=0.5)", seed][quantity] - values["pre", seed][quantity] for seed in (0, 1)]
        assert summary.difference.value == pytest.approx(sum(deltas) / 2, abs=1e-9)
        assert summary.difference.interval is None  # of two seeds
    constants = {one.name: one.values for one in after.constants}
    assert constants["chance"] == pytest.approx({"first": 1 / 3, "second": 1 / 3, "mean": 1 / 3})
    best = constants.pop("the best constant of each")
    assert best["first"] == max(one["first"] for one in constants.values())
    assert any(line.startswith("`mix(alpha=0.5)` less `pre`, first:") for line in after.verdicts)
    assert after.since == result.then[0].title
    assert {one.quantity for one in after.changes} == {"first", "second", "mean"}


def test_the_result_is_shown_and_kept_in_every_form(result: Comparison, folder: Path) -> None:
    out = folder / "whole"
    assert from_json((out / "results.json").read_text()).then == result.then
    page, table = (out / "report.html").read_text(), (out / "table.md").read_text()
    assert page.count('<section id="then-') == 3
    for text in (page, table, str(result)):
        assert "Fine-tuning on even.jsonl" in text
        assert "always the first option" in text
    (link,) = result.then[0].links.values()
    assert f'href="./{link}"' in page or f'href="{link}"' in page
    frame: Any = result.to_frame()
    assert list(frame["then 2: loss after"]) == [run.values["loss after"] for run in result.then[1].runs]


def test_what_is_finished_is_not_done_again(
    result: Comparison, request_: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it was done already")

    monkeypatch.setattr("mixln.studies.steps.fine_tuning_step.run_fine_tuning", refuse)
    monkeypatch.setattr("mixln.studies.evaluation.run_task", refuse)
    assert compared(request_, folder / "whole") == result
    # another evaluation before it does not make another fine-tuning of it
    assert len(compared(request_, folder / "whole", then=request_["then"][1:]).then) == 2


def test_a_comparison_that_is_interrupted_in_a_step_goes_on(
    result: Comparison, request_: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fine_tuned_model.train
    steps: list[int] = []

    def watch(stop: bool) -> None:
        def train(task: Any, folder: Any, report_step: Any, **named: Any) -> Any:
            def report(step: int, *rest: float) -> None:
                steps.append(step)
                if stop and len(steps) == per_run + 3:
                    raise KeyboardInterrupt
                report_step(step, *rest)

            return real(task, folder, report, **named)

        monkeypatch.setattr(fine_tuned_model, "train", train)

    (per_run,) = {json.loads(path.read_text())["steps"] for path in folder.glob("whole/then/*/*/finetuning.json")}
    watch(stop=True)
    then = [request_["then"][0], {**request_["then"][1], "checkpoint_every": 1}]
    with pytest.raises(KeyboardInterrupt, match="what the steps after them have finished are kept"):
        compared(request_, tmp_path, then=then)
    assert len(from_json((tmp_path / "results.json").read_text()).then) == 1
    steps.clear()
    watch(stop=False)
    again = compared(request_, tmp_path, then=then)
    assert steps == [*range(3, per_run + 1), *range(1, per_run + 1), *range(1, per_run + 1)]
    assert [run.values for run in again.then[1].runs] == [run.values for run in result.then[1].runs]
    assert again.then[0] == result.then[0]


def compare_until(request: dict[str, Any], out: Path, path: str, number: int) -> None:
    """Compare in this process, and die by SIGKILL when a file of that name is opened for the `number`-th time."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open" and isinstance(arguments[0], str) and path in arguments[0] and str(out) in arguments[0]:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    compared(request, out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "number"),
    [("/then/answers/", 6), ("/checkpoints/", 4), (OUTCOME_FILE, 3), ("finetuning.json", 2), ("evaluation.json", 5)],
)
def test_a_comparison_that_is_killed_in_a_step_ends_as_if_it_was_not(
    path: str, number: int, result: Comparison, request_: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "whole" / "runs", tmp_path / "runs")
    request = request_ | {
        "then": [request_["then"][0], {**request_["then"][1], "checkpoint_every": 2}, *request_["then"][2:]]
    }
    child = forkserver().Process(target=compare_until, args=(request, tmp_path, path, number))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    again = compared(request, tmp_path)
    for one, other in zip(again.then, result.then, strict=True):
        assert (one.runs, one.summaries, one.constants) == (other.runs, other.summaries, other.constants)
        assert one.verdicts == other.verdicts


def test_a_diverged_run_is_left_out_with_a_word(request_: dict[str, Any], tmp_path: Path, tasks: list[str]) -> None:
    found = compared(
        request_,
        tmp_path,
        schemes=["post", "pre"],
        seeds=[0],
        learning_rate_of={"post": 1e30},
        max_grad_norm=0.0,
        then=[request_["then"][1], f"evaluate={tasks[0]} --limit 5"],
    )
    assert [run.learning_rate for run in found.runs] == [1e30, 5e-3]
    for step in found.then:
        diverged, good = step.runs
        assert diverged.values == {}
        assert "its training diverged, so it is left out" in diverged.remark
        assert good.values
        assert step_cells(step).rows[0][-1] == "1, 1 left out"


def test_a_fine_tuning_that_diverges_ends_the_way_of_its_model_alone(
    request_: dict[str, Any], rows: Path, tasks: list[str], tmp_path: Path
) -> None:
    then = [{"finetune": rows, **TUNING, "learning_rate": 1e30}, {"evaluate": tasks[:1]}]
    for _ in range(2):
        found = compared(request_, tmp_path, schemes=["pre"], seeds=[0], then=then)
        tuning, scores = found.then
        assert "its fine-tuning diverged" in tuning.runs[0].remark
        assert scores.runs[0].values == tuning.runs[0].values == {}
        assert len(list(tmp_path.glob(f"then/finetune_*/*/{OUTCOME_FILE}"))) == 1


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["tune={rows}"], "there is no step 'tune'"),
        (["finetun={rows}"], "Did you mean 'finetune'?"),
        (["finetune"], "behind the name stands what it works on: finetune=DATA"),
        (["finetune={rows} --epoch 3"], "`mixln finetune` has no option --epoch. Did you mean '--epochs'?"),
        (["finetune={rows} --epochs 0"], "--epochs must be more than 0"),
        (["finetune={rows} --seed 3"], "has no option --seed"),
        (["finetune={rows} --out x"], "has no option --out"),
        (["finetune='{rows}"], "Close what is quoted"),
        (["finetune=none.jsonl"], "none.jsonl is not a file"),
        (["finetune={empty}"], "holds no examples"),
        (["finetune={rows} --template nothing.yaml"], "there is no prompt template 'nothing.yaml'"),
        (["finetune={rows} --template instruction"], "'instruction' is undefined"),
        (["finetune={rows} --sequence-length 5000"], "takes no rows of 5000 tokens"),
        (["finetune={rows} --sequence-length 4"], "do not fit into a row of 4 tokens"),
        (["finetune={rows} --sequence-length 4"], "--too-long drop leaves them out"),
        (["finetune={damaged}"], "damaged.jsonl:3 has no completion"),
        (["evaluate={first}", "evaluate={first},{first}"], "a task is named twice"),
        (["evaluate=none.jsonl"], "there is no file none.jsonl"),
        (["evaluate={first} --limit 0"], "--limit must be at least 1"),
        (["evaluate={first} --num-fewshot 500"], "first has 19 solved items besides the item itself"),
        (["evaluate=broken --task-path {folder}"], "item 1 of broken: the right answer 7 is not one of its 3 options"),
        (["evaluate={first} --names a"], "has no option --names"),
        (["evaluate={first} --apply-chat-template"], "the tokenizer has no chat template"),
    ],
)
def test_a_bad_step_ends_in_one_message_before_anything_is_trained(
    steps: list[str],
    message: str,
    corpus: Path,
    folder: Path,
    rows: Path,
    tasks: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged = write(tmp_path / "damaged.jsonl", [{"prompt": "a", "completion": "b"}] * 2 + [{"prompt": "a"}])
    empty = write(tmp_path / "empty.jsonl", [])
    items = make_items(3)
    broken = write_task(tmp_path / "tasks", [items[0], items[1] | {"gold": 7}, items[2]], "broken")
    places = {"rows": rows, "empty": empty, "damaged": damaged, "first": tasks[0], "folder": broken}
    filled = [step.format(**places) for step in steps]
    sizes = {"hidden-size": 32, "intermediate-size": 64, "num-hidden-layers": 2, "num-attention-heads": 4}
    sizes |= {"data.vocab-size": 400, "sequence-length": 64, "validation-fraction": 0.2, "steps": 4}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    options += ["--text", str(corpus), "--cache", str(folder / "cache"), "--out", str(tmp_path / "out")]
    then = [word for step in filled for word in ("--then", step)]
    assert main(["compare", *options, *then]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "--then" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("out/runs/*"))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({}, "there is no step ''"),
        ({"finetune": "{rows}", "epoch": 1.0}, "there is no `epoch` to be given. Did you mean 'epochs'?"),
        ({"finetune": "{rows}", "epochs": "3"}, "epochs must be a number, not '3'"),
        ({"evaluate": ["{rows}"], "limit": "many"}, "`limit` must be a whole number, not 'many'"),
        ({"evaluate": []}, "`tasks` is empty"),
    ],
)
def test_a_bad_step_from_python_is_refused(step: dict[str, Any], message: str, short: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        mixln.compare(recipe=short, then=[step], out=tmp_path)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_takes_every_option_of_its_command(name: str) -> None:
    """But for those that the comparison decides: a new option of a command is one of the step, or decided."""
    kind = STEPS[name]
    maker = getattr(import_module(kind.maker[0]), kind.maker[1])
    taken = set(inspect.signature(maker).parameters) - {"written"}
    given = {option.parameter for option in find_interface(name).options if option.name not in kind.decided}
    assert given == taken
    assert maker.name == name


def test_each_scheme_can_have_its_own_rate(recipe: Recipe, tmp_path: Path) -> None:
    jobs = plan_jobs(recipe, ["pre", "mix", "lns"], "", tmp_path, [0, 1], [1e-3, 2e-3], {"mix(alpha=0.25)": 5e-4})
    expected = [("pre", 1e-3), ("mix(alpha=0.25)", 5e-4), ("lns", 1e-3), ("pre", 2e-3), ("lns", 2e-3)]
    found = [(job.recipe.model.placement, job.recipe.optimizer.learning_rate, job.recipe.seed) for job in jobs]
    assert found == [(*one, seed) for seed in (0, 1) for one in expected]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lns=1e-3"], "--learning-rate-of names lns, which is not compared"),
        (["pre"], "--learning-rate-of has 'pre': write a scheme and its rate"),
        (["pre=fast"], "--learning-rate-of has 'pre=fast'"),
        (["pre=-1"], "learning_rate must be more than 0"),
        (["pre=1e-3", "pre=2e-3"], "--learning-rate-of has pre twice"),
        (["per=1e-3"], "per"),
    ],
)
def test_bad_rates_of_schemes_end_in_one_message(
    words: list[str], message: str, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--schemes", "pre", "mix", "--text", str(corpus), "--out", str(tmp_path / "out")]
    assert main(["compare", *options, "--learning-rate-of", *words]) == 2
    assert message in capsys.readouterr().err


def test_summaries_pair_by_seed_and_leave_out_what_is_missing() -> None:
    quantity = Quantity("score", "share", True)

    def runs(scores: dict[str, list[float | None]]) -> list[StepRun]:
        return [
            StepRun(placement, seed, 1e-3, {} if value is None else {"score": value})
            for placement, values in scores.items()
            for seed, value in enumerate(values)
        ]

    before = runs({"pre": [0.1, 0.2, 0.3, 0.4], "post": [0.2, None, 0.4, 0.5], "lns": [None] * 4})
    pre, post = summarize_step(before, [quantity], "pre")
    assert (pre.seeds, pre.mean, pre.difference) == (4, pytest.approx(0.25), None)
    assert (post.seeds, post.mean) == (3, pytest.approx(1.1 / 3))
    assert post.difference is not None
    assert (post.difference.value, post.difference.interval) == (pytest.approx(0.1), pytest.approx((0.1, 0.1)))
    after = runs({"pre": [0.3, 0.3, None, 0.3], "post": [0.2, 0.2, 0.2, 0.2]})
    results = [StepResult("", "", [quantity], found, []) for found in (before, after)]
    one, other = step_changes(*results)
    assert (one.placement, one.seeds, one.before, one.after) == ("pre", 3, pytest.approx(0.7 / 3), pytest.approx(0.3))
    assert one.change.value == pytest.approx(0.2 / 3)
    assert (other.placement, other.seeds, other.after) == ("post", 3, pytest.approx(0.2))
