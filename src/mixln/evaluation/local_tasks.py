"""Multiple-choice tasks in JSON lines of one's own, in the forms that people have, for lm-evaluation-harness.

| fields of a row | prompt | options |
| --- | --- | --- |
| `query`, `choices`, `gold` | the query | the choices |
| `context_options`, `continuation`, `gold` | each of the contexts | the continuation, behind each |
| `question`, `choice0`, `choice1`, ..., `answer` | question, lettered choices, "Answer:" | the letters |
| `question`, `choices`, `answer` | the same | the letters |
| `instruction`, `output`, `answer` | `mixln.data.prompts.INSTRUCTION` | "the correct answer is ..." |

The options of an instruction are those of its `Answer format: a/b/...`.

`gold` and `answer` are an index from 0, a letter, or the text of a choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixln.data.file_formats import is_json_file, read_rows
from mixln.data.prompts import INSTRUCTION, answer_options
from mixln.errors import InputError

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """One item of a task.

    Attributes:
        contexts: what stands before the options: one text, or one for each option.
        options: what is scored: one text for each option, or one that stands behind every context.
        gold: index of the right option.
        subject: that the item belongs to; empty: none.
    """

    contexts: list[str]
    options: list[str]
    gold: int
    subject: str = ""

    @property
    def num_options(self) -> int:
        """How many options there are."""
        return max(len(self.contexts), len(self.options))


@dataclass(frozen=True)
class Form:
    """A form of rows.

    Attributes:
        required: the fields that every row has.
        read: from a row and its place to a question.
        delimiter: what stands between a prompt and each option.
    """

    required: frozenset[str]
    read: Callable[[Mapping[str, Any], str], Question]
    delimiter: str = " "


@dataclass(frozen=True)
class LocalTask:
    """The items of a file.

    Attributes:
        name: of the file, without its suffixes.
        form: of its rows.
        questions: in the order of the file.
        examples: that prompts may show, by a file `dev` beside it; None: there is none.
    """

    name: str
    form: Form
    questions: list[Question]
    examples: list[Question] | None = None

    @property
    def delimiter(self) -> str:
        """What stands between a prompt and each option."""
        return self.form.delimiter

    @property
    def prompts(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """What lm-evaluation-harness shows and scores for an item, as functions of its fields."""
        if len(self.questions[0].contexts) > 1:
            # several prompts before one text: then the "text" of an item is the index of the right prompt
            return {
                "doc_to_text": lambda item: item["gold"],
                "doc_to_choice": lambda item: item["contexts"],
                "doc_to_target": lambda item: item["options"][0],
            }
        return {
            "doc_to_text": lambda item: item["contexts"][0],
            "doc_to_choice": lambda item: item["options"],
            "doc_to_target": lambda item: item["gold"],
        }

    def of(self, subject: str | None, questions: Sequence[Question]) -> list[Question]:
        """The questions of a subject; None: of all."""
        return [one for one in questions if subject in (None, one.subject)]

    def description(self, subject: str) -> str:
        """What a prompt begins with, as in lm-evaluation-harness' own MMLU; empty without a subject."""
        if not subject:
            return ""
        return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def is_local_task(name: str) -> bool:
    """Whether a task is named by a file of JSON lines, or a folder with a `test` file of them."""
    return is_json_file(Path(name)) or Path(name).is_dir()


def read_local_task(name: str) -> LocalTask:
    """Read a task from a file, or from a folder that holds `test.jsonl` and, for prompts, `dev.jsonl` (or compressed).

    Raises:
        InputError: a row has another form than the first, an option is empty or missing, or `gold` is none of them;
            names the row.
    """
    path = Path(name)
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"there is no file {path} of a task. Give one of JSON lines, or a task's name")
        return _task(path, None, path.name.split(".")[0])
    files = {part: _rows_file(path, part) for part in ("test", "dev")}
    if files["test"] is None:
        raise InputError(f"{path} holds no file test.jsonl (or .gz, ...). Give the file of a task, or add one")
    return _task(files["test"], files["dev"], path.resolve().name)


def _task(file: Path, examples: Path | None, name: str) -> LocalTask:
    form, questions = _read(file)
    return LocalTask(name, form, questions, None if examples is None else _read(examples)[1])


def _rows_file(folder: Path, part: str) -> Path | None:
    return next((one for one in sorted(folder.iterdir()) if one.name.split(".")[0] == part and is_json_file(one)), None)


def _read(file: Path) -> tuple[Form, list[Question]]:
    form: Form | None = None
    questions: list[Question] = []
    for place, row in read_rows(file):
        form = form or _form_of(row, place)
        if missing := form.required - row.keys():
            raise InputError(
                f"{place} has no {_names(missing)}, which the first row has. Give every row the same fields"
            )
        questions.append(_checked(form.read(row, place), place))
    if form is None:
        raise InputError(f"{file} holds no items. Give a file with one item a line")
    return form, questions


def _checked(question: Question, place: str) -> Question:
    if question.num_options < 2:
        raise InputError(f"{place} has {question.num_options} option, so every model is right. Give two or more")
    for one in (*question.contexts, *question.options):
        if not one.strip():
            raise InputError(f"{place} has an empty question or option. Fill it, or leave the row out")
    return question


def _form_of(row: Mapping[str, Any], place: str) -> Form:
    for form in _FORMS:
        if form.required <= row.keys():
            return form
    known = "; ".join(_names(form.required) for form in _FORMS)
    raise InputError(f"{place} has the fields {_names(row)}, which is no known form of a task. Known are: {known}")


def _names(fields: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, fields)))


def _query(row: Mapping[str, Any], place: str) -> Question:
    choices = _texts(row, "choices", place)
    return Question([_asked(_text(row, "query", place))], choices, _gold(row["gold"], choices, place))


def _asked(query: str) -> str:
    """A query of the form `Question: ...` is followed by `Answer:`, as lm-evaluation-harness asks such questions."""
    last = query.rstrip().rpartition("\n")[2]
    is_question = re.search(r"^Question:", query, re.MULTILINE) is not None and not last.startswith("Answer:")
    return f"{query.rstrip()}\nAnswer:" if is_question else query


def _contexts(row: Mapping[str, Any], place: str) -> Question:
    contexts = _texts(row, "context_options", place)
    return Question(contexts, [_text(row, "continuation", place)], _gold(row["gold"], contexts, place))


def _numbered(row: Mapping[str, Any], place: str) -> Question:
    count = next(number for number in range(len(row) + 1) if f"choice{number}" not in row)
    answer = row["answer"]
    if isinstance(answer, str) and answer.strip().isdecimal():
        row = {**row, "answer": int(answer)}  # of choices by number: the number of one, whatever their texts are
    return _lettered(row, [_text(row, f"choice{number}", place) for number in range(count)], place)


def _listed(row: Mapping[str, Any], place: str) -> Question:
    return _lettered(row, _texts(row, "choices", place), place)


def _lettered(row: Mapping[str, Any], choices: list[str], place: str) -> Question:
    if len(choices) > len(_LETTERS):
        raise InputError(
            f"{place} has {len(choices)} choices, more than there are letters. Use `query` instead of them"
        )
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False)]
    prompt = "\n".join([_text(row, "question", place).strip(), *lines, "Answer:"])
    subject = _text(row, "subject", place) if "subject" in row else ""
    gold = _gold(row["answer"], choices, place)
    return Question([prompt], list(_LETTERS[: len(choices)]), gold, subject)


def _instruction(row: Mapping[str, Any], place: str) -> Question:
    answers = answer_options(_text(row, "instruction", place))
    if answers is None:
        raise InputError(
            f"{place}: its instruction does not end with 'Answer format: a/b/...', so its options are not known. Use "
            "the fields query, choices, gold"
        )
    options = [f"the correct answer is {one}" for one in answers]
    return Question([INSTRUCTION.prompt(row, place)], options, _gold(row["answer"], answers, place))


_FORMS = (
    Form(frozenset({"query", "choices", "gold"}), _query),
    Form(frozenset({"context_options", "continuation", "gold"}), _contexts),
    Form(frozenset({"question", "choice0", "choice1", "answer"}), _numbered),
    Form(frozenset({"question", "choices", "answer"}), _listed),
    Form(frozenset({"instruction", "output", "answer"}), _instruction, delimiter=""),
)


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    if not isinstance(row[name], str):
        raise InputError(f"{place}: {name} must be a text, not {type(row[name]).__name__}")
    return row[name]


def _texts(row: Mapping[str, Any], name: str, place: str) -> list[str]:
    found = row[name]
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InputError(f"{place}: {name} must be a list of texts")
    return found


def _gold(value: object, choices: list[str], place: str) -> int:
    """The index of the right choice, given as an index, a letter, or the choice's text."""
    readings: set[int] = set()
    if isinstance(value, int) and not isinstance(value, bool):
        readings.add(value)
    elif isinstance(value, str):
        if value.strip().isdecimal():
            readings.add(int(value))
        if len(value) == 1 and value in _LETTERS:
            readings.add(_LETTERS.index(value))
        if value in choices:
            readings.add(choices.index(value))
    found = [one for one in readings if 0 <= one < len(choices)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{place}: the right answer {value!r} can be read as {len(found)} options. Give its index, as a number"
        )
    raise InputError(
        f"{place}: the right answer is given as {value!r}. Give the index of one of its {len(choices)} options, "
        "counted from 0, its letter or its text"
    )
