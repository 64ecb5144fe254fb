"""`mixln evaluate`, on the command line and in Python."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny_llama, tiny_llama, with_begin_token
from transformers import BertConfig, BertModel, LlamaForCausalLM, PreTrainedTokenizerFast

import mixln
from mixln.cli import main
from mixln.data import PreparedData, train_tokenizer
from mixln.errors import InputError
from mixln.evaluation import harness
from mixln.report.evaluation import EVALUATION_FILE
from tasks import WORDS, make_items, write_task

pytest.importorskip("lm_eval", reason="needs mixln[evaluation]")


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def items(folder: Path) -> str:
    return write(folder / "words.jsonl", make_items(60))


@pytest.fixture(scope="module")
def models(folder: Path, data: PreparedData) -> list[str]:
    return [str(save_tiny_llama(folder / f"m{layers}", data.tokenizer, layers)) for layers in (2, 3)]


def lettered(count: int = 80) -> list[dict[str, Any]]:
    draw = random.Random(5)
    return [
        {"question": f"Which {draw.choice(WORDS)}?", "choices": draw.sample(WORDS, 4), "answer": draw.randrange(4)}
        for _ in range(count)
    ]


def test_models_are_shown_side_by_side_with_constants_and_tests(
    models: list[str], items: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", *models, "--tasks", items, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "0 of 2 scores are above every constant answer" in shown
    assert "not distinguishable from chance" in shown
    assert "m3 cannot be told from m2 on these 60 items" in shown
    report = json.loads((out / EVALUATION_FILE).read_text())
    (task,) = report["tasks"]
    assert (task["name"], task["num_items"], task["constants"][0]) == (
        "words",
        60,
        {"name": "chance", "score": pytest.approx(1 / 3)},
    )
    assert [one["model"] for one in report["scores"]] == ["m2", "m3"]
    assert all(sum(one["places"]) + one["tied"] + one["unanswered"] == 60 for one in report["scores"])
    assert report["command"].startswith("mixln evaluate")
    page = (out / "report.html").read_text()
    assert "always the shortest option" in page
    assert "McNemar" in page


def test_models_of_one_name_are_seeds(models: list[str], items: str, data: PreparedData) -> None:
    others = [tiny_llama(data.tokenizer, 2), tiny_llama(data.tokenizer, 4)]
    report = mixln.evaluate([*models, *others], data.tokenizer, tasks=[items], names=["a", "a", "b", "b"], limit=30)
    assert report.models == ["a #1", "a #2", "b #1", "b #2"]
    first, second = report.seeds
    assert (first.model, first.seeds, first.difference, second.model) == ("a", 2, None, "b")
    scores = [one.score.value for one in report.scores]
    assert first.score == pytest.approx((scores[0] + scores[1]) / 2)
    assert second.difference is not None
    assert second.difference.value == pytest.approx((scores[2] + scores[3] - scores[0] - scores[1]) / 2)
    assert second.difference.interval is None  # of two seeds


def test_the_result_has_a_frame_and_is_saved(models: list[str], items: str, tmp_path: Path) -> None:
    report = mixln.evaluate(models[0], tasks=[items], limit=20)
    frame: Any = report.to_frame()
    assert list(frame["task"]) == ["words"]
    assert frame["chance"][0] == pytest.approx(1 / 3)
    assert report.save(tmp_path / "saved").name == "report.html"
    assert "words" in str(report)


class Hooked:
    """A model that adds to its logits what a function of the tokens says."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, change: Any) -> None:
        self.model = tiny_llama(tokenizer, 2)
        self.model.lm_head.weight.data.zero_()
        seen: dict[str, torch.Tensor] = {}
        self.model.model.embed_tokens.register_forward_pre_hook(lambda _m, inputs: seen.update(ids=inputs[0]))
        self.model.lm_head.register_forward_hook(lambda _m, _i, logits: change(logits, seen["ids"]))


def test_a_model_whose_weights_are_nan_is_told(data: PreparedData, items: str) -> None:
    model: Any = tiny_llama(data.tokenizer, 2)
    model.model.layers[0].mlp.up_proj.weight.data.fill_(float("nan"))
    report = mixln.evaluate(model, data.tokenizer, tasks=[items], limit=20)
    (score,) = report.scores
    assert score.verdict == "no answer to any item: every item has a score that is NaN"
    assert (score.unanswered, score.score.value, score.places, score.above_constants) == (20, 0.0, [0, 0, 0], False)


def test_a_model_that_always_answers_the_first_option_is_told(data: PreparedData, tmp_path: Path) -> None:
    (letter,) = data.tokenizer(" A", add_special_tokens=False)["input_ids"][-1:]

    def prefer(logits: torch.Tensor, _ids: torch.Tensor) -> torch.Tensor:
        return logits + 9 * torch.nn.functional.one_hot(torch.tensor(letter), logits.shape[-1])

    report = mixln.evaluate(
        Hooked(data.tokenizer, prefer).model, data.tokenizer, tasks=[write(tmp_path / "letters.jsonl", lettered())]
    )
    (score,) = report.scores
    assert score.places == [80, 0, 0, 0]
    assert score.verdict.startswith("answers like always the first option")
    assert not score.above_constants


def test_a_model_that_copies_the_prompt_is_told(data: PreparedData, tmp_path: Path) -> None:
    def copy(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        # the tokens read so far are likely to come again
        seen = torch.nn.functional.one_hot(ids, logits.shape[-1]).cumsum(1).clamp(max=1)
        return logits + 20 * seen

    draw = random.Random(6)
    rows = []
    for number in range(60):
        options = draw.sample(WORDS[3:9], 4)
        rows.append({"query": f"of {options[number % 4]} to", "choices": options, "gold": draw.randrange(4)})
    report = mixln.evaluate(
        Hooked(data.tokenizer, copy).model, data.tokenizer, tasks=[write(tmp_path / "copies.jsonl", rows)]
    )
    (score,) = report.scores
    (copying,) = [one for one in score.tests if "repeats the prompt" in one.constant]
    assert copying.agreement > 0.9
    assert "answers like always the option that repeats the prompt most" in score.verdict


def test_a_model_that_gives_every_token_the_same_is_tied_not_first(data: PreparedData, tmp_path: Path) -> None:
    report = mixln.evaluate(
        Hooked(data.tokenizer, lambda logits, _: logits).model,
        data.tokenizer,
        tasks=[write(tmp_path / "letters.jsonl", lettered(20))],
    )
    (score,) = report.scores
    assert score.verdict == "all options of every item are tied: it does not choose"
    assert score.score.value == pytest.approx(0.25)


def test_a_begin_token_stands_before_every_prompt_once(data: PreparedData, items: str) -> None:
    tokenizer = with_begin_token(data.tokenizer)
    model = tiny_llama(tokenizer, 2)
    rows: list[Any] = []
    model.register_forward_pre_hook(
        lambda _m, args, kwargs: rows.append([*args, *kwargs.values()][0]), with_kwargs=True
    )
    mixln.evaluate(model, tokenizer, tasks=[items], limit=5, batch_size=1)
    assert rows
    for row in rows:
        assert (row == tokenizer.bos_token_id).sum(1).tolist() == [1]
        assert row[0, 0] == tokenizer.bos_token_id


def test_prompts_that_are_cut_are_counted(data: PreparedData, tmp_path: Path) -> None:
    long = {"query": "the name of a class " * 40, "choices": ["is", "is not"], "gold": 0}
    model = tiny_llama(data.tokenizer, 2, max_position_embeddings=64)
    report = mixln.evaluate(
        model, data.tokenizer, tasks=[write(tmp_path / "long.jsonl", [long, *make_items(3)])], batch_size=1
    )
    assert report.scores[0].cut == 1
    assert "cuts off the beginning" in report.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "no_such_task_at_all"], "there is no task 'no_such_task_at_all'"),
        (["--tasks", "none.jsonl"], "there is no file none.jsonl"),
        (["--tasks", "{items}", "{items}"], "a task is named twice"),
        (["--tasks", "{items}", "--names", "a", "b"], "--names has 2 entries, but there are 1 models"),
        (["--tasks", "{items}", "--names", " "], "--names has an empty name"),
        (["--tasks", "{items}", "--task-path", "{folder}"], "has tasks that are called by name"),
        (["--tasks", "{items}", "--num-fewshot", "1000"], "solved items besides the item itself. Ask for fewer"),
        (["--tasks", "{items}", "--limit", "0"], "--limit must be at least 1, not 0"),
        (["--tasks", "{items}", "--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["--tasks", "{items}", "--num-fewshot", "-1"], "--num-fewshot must not be negative"),
        (["--tasks", "{items}", "--apply-chat-template"], "the tokenizer has no chat template"),
        (["--tasks", "{items}", "--fewshot-as-multiturn"], "--fewshot-as-multiturn needs --apply-chat-template"),
        ([], "tasks"),
        (["--tasks", "{folder}/one.jsonl"], "one.jsonl:2 has 1 option, so every model is right"),
        (["--tasks", "{folder}/blank.jsonl"], "blank.jsonl:1 has an empty question or option"),
        (["--tasks", "{folder}/far.jsonl"], "far.jsonl:1: the right answer is given as 7"),
        (["--tasks", "{folder}/empty.jsonl"], "holds no items"),
        (["--tasks", "{folder}/fields.jsonl"], "which is no known form of a task"),
        (["--tasks", "{folder}"], "holds no file test.jsonl"),
        (["--tasks", "words", "--task-path", "{folder}/none"], "there is no folder"),
        (["--tasks", "broken", "--task-path", "{folder}/yaml"], "the task broken cannot be loaded: UndefinedError"),
    ],
)
def test_bad_requests_end_in_one_message(
    options: list[str],
    message: str,
    models: list[str],
    items: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mixln.hub._reason_to_stay_offline", lambda: None)
    good = make_items(2)
    write(tmp_path / "one.jsonl", [good[0], good[1] | {"choices": ["so"], "gold": 0}])
    write(tmp_path / "blank.jsonl", [good[0] | {"choices": ["so", ""]}])
    write(tmp_path / "far.jsonl", [good[0] | {"gold": 7}])
    write(tmp_path / "empty.jsonl", [])
    write(tmp_path / "fields.jsonl", [{"text": "a"}])
    write_task(tmp_path / "yaml", good, "broken", doc_to_choice="{{options}}")
    filled = [option.format(items=items, folder=tmp_path) for option in options]
    assert main(["evaluate", models[0], *filled, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", ["other", "bare"])
def test_a_folder_without_its_own_tokenizer_is_refused(
    name: str, models: list[str], items: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(models[0], tmp_path / name))
    if name == "other":
        words = (f"{number:05d} {number * 7919:x}" for number in range(20000))
        train_tokenizer(words, 2000).save_pretrained(folder)
    else:
        for path in folder.glob("tokenizer*"):
            path.unlink()
    assert main(["evaluate", str(folder), "--tasks", items, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert "tokenizer" in errors
    assert "Traceback" not in errors


def test_models_that_predict_no_next_token_are_refused(data: PreparedData, items: str) -> None:
    bert = BertModel(
        BertConfig(
            vocab_size=len(data.tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    with pytest.raises(InputError, match="a BertModel is not one"):
        mixln.evaluate(bert, data.tokenizer, tasks=[items])


def test_the_model_stays_as_it_was(data: PreparedData, items: str) -> None:
    model = tiny_llama(data.tokenizer, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mixln.evaluate(model, data.tokenizer, tasks=[items], limit=5)
    assert isinstance(model, LlamaForCausalLM)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_evaluation_that_ended_early_goes_on(
    models: list[str], items: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = write(tmp_path / "second.jsonl", make_items(50)[20:])
    arguments = ["evaluate", *models, "--tasks", items, second, "--out"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    real, runs = harness.run_task, list[str]()

    def stop_at_the_third(task: Any, *rest: Any, **named: Any) -> Any:
        if len(runs) == 3:
            raise KeyboardInterrupt
        runs.append(task.name)
        return real(task, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr("mixln.studies.evaluation.run_task", stop_at_the_third)
        assert main([*arguments, str(tmp_path / "out")]) == 130
    unfinished = json.loads((tmp_path / "out" / EVALUATION_FILE).read_text())
    assert len(unfinished["scores"]) == 3
    again: list[str] = []
    monkeypatch.setattr(
        "mixln.studies.evaluation.run_task",
        lambda task, *rest, **named: again.append(task.name) or real(task, *rest, **named),
    )
    assert main([*arguments, str(tmp_path / "out")]) == 0
    assert again == ["second"]
    found, whole = (json.loads((tmp_path / name / EVALUATION_FILE).read_text()) for name in ("out", "whole"))
    for report in (found, whole):
        del report["command"]
        for score in report["scores"]:
            del score["seconds"]
    assert found == whole
