"""Tasks in JSON lines: every form, in the harness's hands, and bad rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import SHARED, tiny_llama

from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.evaluation.answers import read_answers
from mixln.evaluation.harness import Prompting, load_task, run_task
from mixln.evaluation.items import credits
from mixln.evaluation.local_tasks import read_local_task

pytest.importorskip("lm_eval", reason="needs mixln[evaluation]")

FORMS: dict[str, list[dict[str, Any]]] = {
    "query": [
        {"query": "the name of the", "choices": ["class", "value of it"], "gold": 1},
        {"query": "Question: is it?", "choices": ["no", "yes"], "gold": 0},
    ],
    "contexts": [
        {"context_options": ["this is the class", "this is the name"], "continuation": "of the object", "gold": 1},
        {"context_options": ["a value", "a statement"], "continuation": "is not", "gold": 0},
    ],
    "numbered": [
        {"question": "How many?", "choice0": "1", "choice1": "0", "choice2": "7", "answer": "1", "subject": "one_two"},
        {"question": "Which?", "choice0": "x", "choice1": "y", "choice2": "z", "answer": "2", "subject": "names"},
    ],
    "listed": [
        {"question": "Which?", "choices": ["x", "y"], "answer": "y"},
        {"question": "Which?", "choices": ["x", "y"], "answer": "A"},
    ],
    "instruction": [
        {
            "instruction": "Is it?\n\nAnswer format: true/false",
            "input": "",
            "output": "the correct answer is false",
            "answer": "false",
        },
        {
            "instruction": "Is it so?\n\nAnswer format: true/false",
            "input": "",
            "output": "the correct answer is true",
            "answer": "true",
        },
    ],
}
GOLD = {"query": [1, 0], "contexts": [1, 0], "numbered": [1, 2], "listed": [1, 0], "instruction": [1, 0]}


def write(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_scored_as_the_harness_scores(form: str, tmp_path: Path, data: PreparedData) -> None:
    model = tiny_llama(data.tokenizer, 2)
    task = load_task(write(tmp_path / "rows.jsonl", FORMS[form]))
    found = run_task(task, model, data.tokenizer)
    answers = read_answers(task, found)
    assert answers is not None
    assert sorted(one.gold[0] for one in answers.items) == sorted(GOLD[form])
    accuracy = sum(credits(answers.picks(), [one.gold for one in answers.items])) / 2
    metrics = [found.results[part]["acc,none"] * len(found.samples[part]) for part in task.parts]
    assert accuracy == pytest.approx(sum(metrics) / 2)


def test_prompts_and_options_of_every_form(tmp_path: Path) -> None:
    shown = {form: read_local_task(write(tmp_path / f"{form}.jsonl", rows)).questions for form, rows in FORMS.items()}
    assert [one.gold for form in FORMS for one in shown[form]] == [gold for form in FORMS for gold in GOLD[form]]
    assert [one.contexts for one in shown["query"]] == [["the name of the"], ["Question: is it?\nAnswer:"]]
    assert shown["numbered"][0].contexts == ["How many?\nA. 1\nB. 0\nC. 7\nAnswer:"]
    assert shown["numbered"][0].options == ["A", "B", "C"]
    assert shown["instruction"][0].options == ["the correct answer is true", "the correct answer is false"]
    assert shown["instruction"][0].contexts[0].endswith("### Response:\n")


def test_solved_items_come_from_dev_and_from_the_same_subject(tmp_path: Path, data: PreparedData) -> None:
    folder = tmp_path / "mmlu"
    write(folder / "test.jsonl", FORMS["numbered"])
    solved = [{**row, "question": f"solved {row['subject']}"} for row in FORMS["numbered"]]
    with gzip.open(folder / "dev.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in solved)
    task = load_task(str(folder))
    assert list(task.parts) == ["mmlu_one_two", "mmlu_names"]
    found = run_task(task, tiny_llama(data.tokenizer, 2), data.tokenizer, prompting=Prompting(num_fewshot=1))
    prompts = {part: found.samples[part][0]["arguments"][0][0] for part in task.parts}
    assert "about one two.\n\nsolved one_two\nA. 1\nB. 0\nC. 7\nAnswer: B\n\nHow many?" in prompts["mmlu_one_two"]
    assert "solved names" in prompts["mmlu_names"]
    assert "solved one_two" not in prompts["mmlu_names"]
    again = run_task(task, tiny_llama(data.tokenizer, 2), data.tokenizer)
    assert "solved" not in again.samples["mmlu_names"][0]["arguments"][0][0]


QUERY = FORMS["query"][0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no items"),
        (
            [{"text": "a"}],
            r"rows.jsonl:1 has the fields text, which is no known form of a task. Known are: choices, gold",
        ),
        ([{**QUERY, "choices": ["one"], "gold": 0}], "rows.jsonl:1 has 1 option, so every model is right"),
        ([QUERY, {**QUERY, "gold": 2}], "rows.jsonl:2: the right answer is given as 2"),
        ([{**QUERY, "gold": True}], "the right answer is given as True"),
        ([{**QUERY, "gold": None}], "the right answer is given as None"),
        ([{**QUERY, "choices": "ab"}], "choices must be a list of texts"),
        ([{**QUERY, "choices": ["a", 1]}], "choices must be a list of texts"),
        ([{**QUERY, "choices": ["a", " "]}], "an empty question or option"),
        ([{**QUERY, "query": ""}], "an empty question or option"),
        ([{**QUERY, "query": 3}], "query must be a text, not int"),
        ([QUERY, {"query": "a", "gold": 0}], "rows.jsonl:2 has no choices, which the first row has"),
        ([{"instruction": "Why?", "output": "so", "answer": "so"}], "does not end with 'Answer format: a/b/...'"),
        ([{"question": "?", "choices": ["b", "0"], "answer": "0"}], "can be read as 2 options"),
        (["text"], "rows.jsonl:1 is not a JSON object, but str"),
    ],
)
def test_bad_rows_are_refused_with_their_place(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_local_task(write(tmp_path / "rows.jsonl", rows))


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"query": \n', encoding="utf-8")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"query": "a"}\n' * 1000)[:40])
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("broken.jsonl", r"broken.jsonl:1 is not JSON"),
        ("cut.jsonl.gz", "damaged or cut off"),
        ("folder", "holds no file test.jsonl"),
        ("none.jsonl", "there is no file"),
    ):
        with pytest.raises(InputError, match=message):
            read_local_task(str(tmp_path / name))


@pytest.mark.skipif(not (SHARED / "data" / "eval").is_dir(), reason="needs the shared evaluation data")
def test_the_shared_tasks_are_read() -> None:
    counts = {
        file.name.split(".")[0]: len(read_local_task(str(file)).questions)
        for file in (SHARED / "data" / "eval").glob("*.gz")
    }
    counts["mmlu"] = len(read_local_task(str(SHARED / "data" / "mmlu")).questions)
    assert counts == {
        "arc_easy": 2376,
        "boolq": 3270,
        "hellaswag": 10042,
        "openbook_qa": 500,
        "piqa": 1838,
        "winogrande": 1267,
        "mmlu": 14042,
    }
