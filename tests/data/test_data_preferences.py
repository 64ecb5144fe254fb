"""Pairs of answers: the forms that people have, what is left out and counted, and the split by prompt."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import SHARED, with_begin_token
from transformers import PreTrainedTokenizerFast

from mixln.data import PreparedData
from mixln.data.conversations import PLAIN_CHAT
from mixln.data.preference_rows import read_pairs
from mixln.data.preferences import (
    CHAT,
    AnswerWriter,
    EncodedPair,
    PreferenceData,
    PreferenceRequest,
    choose_form,
    prepare_preferences,
)
from mixln.data.prompts import COMPLETION, INSTRUCTION
from mixln.data.tokenizer import wrap_tokenizer
from mixln.errors import InputError

PREFERENCES = SHARED / "data" / "preferences"


@pytest.fixture
def tokenizer(data: PreparedData) -> PreTrainedTokenizerFast:
    """One of its own, since it may get a chat template."""
    return wrap_tokenizer(data.tokenizer.backend_tokenizer)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def numbered(pairs: int, prompts: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"Number {n % prompts}?\n", "chosen": f"good {n}", "rejected": f"bad answer {n}"}
        for n in range(pairs)
    ]


def messages(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def texts(found: list[EncodedPair], tokenizer: Any) -> list[tuple[str, str]]:
    return [(tokenizer.decode(pair.chosen), tokenizer.decode(pair.rejected)) for pair in found]


def all_texts(found: PreferenceData, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    return texts([*found.train, *found.held_out], tokenizer)


HELLO = "User: Hello?\n\nAssistant: "
HH = "\n\nHuman: Hello?\n\nAssistant:"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": messages("Hello?"), "chosen": messages("", "Yes.")[1:], "rejected": messages("", "No.")[1:]},
        {"prompt": "Hello?", "chosen": messages("Hello?", "Yes."), "rejected": messages("Hello?", "No.")},
        {"prompt": "Hello?", "chosen": messages("", "Yes.")[1:], "rejected": messages("", "No.")[1:]},
        {"prompt": messages("Hello?"), "chosen": "Yes.", "rejected": "No."},
        {"chosen": messages("Hello?", "Yes."), "rejected": messages("Hello?", "No.")},
        {"chosen": f"{HH} Yes.", "rejected": f"{HH} No."},
        {"chosen": "Human: Hello?\n\nAssistant: Yes.", "rejected": "Human: Hello?\n\nAssistant: No."},
    ],
)
def test_every_form_says_the_same(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (pair,) = read_pairs(write(tmp_path / "one.jsonl", [row]))
    assert choose_form([pair]) == CHAT
    writer = AnswerWriter(tokenizer, CHAT)
    encoded = writer.encode([(pair.prompt, answer, pair.place) for answer in (pair.chosen, pair.rejected)])
    end = tokenizer.eos_token
    assert [tokenizer.decode(tokens.ids) for tokens in encoded] == [f"{HELLO}Yes.{end}", f"{HELLO}No.{end}"]
    assert [tokenizer.decode(tokens.ids[tokens.is_answer]) for tokens in encoded] == [f"Yes.{end}", f"No.{end}"]
    assert tokenizer.chat_template == PLAIN_CHAT


def test_dialogues_part_where_an_answer_differs_first(tmp_path: Path) -> None:
    chosen, rejected = messages("a", "b", "c", "d", "e", "f"), messages("a", "b", "c", "other", "e", "f")
    (pair,) = read_pairs(write(tmp_path / "one.jsonl", [{"chosen": chosen, "rejected": rejected}]))
    assert pair.prompt == chosen[:3]
    assert pair.chosen == chosen[3:]
    # of dialogues whose users say something else, the answer before that is the first difference that is an answer
    later = messages("a", "b", "c", "d", "question", "f")
    (pair,) = read_pairs(write(tmp_path / "two.jsonl", [{"chosen": chosen, "rejected": later}]))
    assert pair.prompt == chosen[:3]


def test_texts_with_white_space_between_them_stay_as_they_are(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [{"prompt": "Question: a\nAnswer:", "chosen": " yes", "rejected": " no"}, *numbered(3, 3)]
    found = prepare_preferences(PreferenceRequest([write(tmp_path / "rows.jsonl", rows)]), tokenizer)
    assert found.form == COMPLETION
    end = tokenizer.eos_token
    assert (f"Question: a\nAnswer: yes{end}", f"Question: a\nAnswer: no{end}") in all_texts(found, tokenizer)
    request = PreferenceRequest([write(tmp_path / "rows.jsonl", rows)], form=INSTRUCTION)
    chosen, _ = all_texts(prepare_preferences(request, tokenizer), tokenizer)[0]
    assert "### Instruction:\n" in chosen
    assert "### Response:\n" in chosen


def test_a_text_begins_as_the_tokenizer_begins_one_and_ends_with_the_end_token_alone(
    data: PreparedData, tmp_path: Path
) -> None:
    tokenizer = with_begin_token(data.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    source = write(tmp_path / "rows.jsonl", numbered(6, 6))
    for form in (COMPLETION, CHAT):
        found = prepare_preferences(PreferenceRequest([source], form=form), tokenizer)
        for pair in (*found.train, *found.held_out):
            for ids, length in ((pair.chosen, pair.chosen_length), (pair.rejected, pair.rejected_length)):
                assert (ids[0] == tokenizer.bos_token_id) == (form == COMPLETION)
                assert ids[-1] == tokenizer.eos_token_id, "what a template writes behind the end is left out"
                assert str(tokenizer.decode(ids[-length:-1])).startswith(("good", "bad answer"))


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5])
def test_no_prompt_is_on_both_sides(fraction: float, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = numbered(200, 40)
    rows[7]["prompt"] = "  number 5? "  # the same prompt to a reader
    request = PreferenceRequest([write(tmp_path / "rows.jsonl", rows)], validation_fraction=fraction)
    found = prepare_preferences(request, tokenizer)
    train, held_out = ({pair.prompt_key for pair in side} for side in (found.train, found.held_out))
    assert not train & held_out
    assert len(train | held_out) == 40
    assert len(found.train) + len(found.held_out) == 200
    assert abs(len(held_out) / 40 - fraction) < 0.15
    again = prepare_preferences(request, tokenizer)
    assert again.fingerprint == found.fingerprint
    # a prompt stays on its side when others come
    more = PreferenceRequest([write(tmp_path / "more.jsonl", [*rows, *numbered(90, 90)])], validation_fraction=fraction)
    if fraction > 0.05:
        assert held_out <= {pair.prompt_key for pair in prepare_preferences(more, tokenizer).held_out}


def test_prompts_of_validation_data_are_left_out_of_training(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    train = write(tmp_path / "train.jsonl", numbered(40, 10))
    held_out = write(tmp_path / "held_out.jsonl", numbered(3, 3))
    found = prepare_preferences(PreferenceRequest([train], [held_out]), tokenizer)
    assert (len(found.train), len(found.held_out), found.counts.shared) == (28, 3, 12)
    assert found.counts.read == 43


def test_long_pairs_are_counted_and_cut_at_the_beginning_of_the_prompt(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = numbered(20, 20)
    for number in (3, 4):
        rows[number]["prompt"] = "word " * 60 + rows[number]["prompt"]
    rows[5]["rejected"] = "word " * 60
    source = write(tmp_path / "rows.jsonl", rows)
    dropped = prepare_preferences(PreferenceRequest([source], limit=40), tokenizer)
    assert dropped.counts.too_long == 3
    assert len(dropped.train) + len(dropped.held_out) == 17
    cut = prepare_preferences(PreferenceRequest([source], limit=40, too_long="cut"), tokenizer)
    assert (cut.counts.cut, cut.counts.too_long) == (2, 1), "an answer is never cut"
    for pair in (*cut.train, *cut.held_out):
        assert max(len(pair.chosen), len(pair.rejected)) <= 40
        prompts = pair.chosen[: -pair.chosen_length].tolist(), pair.rejected[: -pair.rejected_length].tolist()
        assert prompts[0] == prompts[1], "both answers are to the same prompt"
    with pytest.raises(InputError, match=r"3 of 20 pairs are longer than 40 tokens; the longest \(.*rows.jsonl:[46]\)"):
        prepare_preferences(PreferenceRequest([source], limit=40, too_long="refuse"), tokenizer)


def test_pairs_that_teach_nothing_are_refused_or_counted(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = numbered(20, 20)
    rows[2]["rejected"] = f" {rows[2]['chosen']}\n"
    rows[4]["chosen"] = "\n"
    rows += [{**rows[9], "chosen": rows[9]["rejected"], "rejected": rows[9]["chosen"]}]
    source = write(tmp_path / "rows.jsonl", rows)
    message = (
        r"of 21 pairs there are 1 with an empty answer \(first: .*:5\) and 1 with two equal answers \(first: .*:3\)"
    )
    with pytest.raises(InputError, match=message):
        prepare_preferences(PreferenceRequest([source]), tokenizer)
    found = prepare_preferences(PreferenceRequest([source], unusable="drop"), tokenizer)
    assert (found.counts.empty, found.counts.identical, found.counts.contradicted) == (1, 1, 2)
    assert len(found.train) + len(found.held_out) == 19


ONE = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no pairs"),
        ([{"prompt": "a", "chosen": "b"}], "has no rejected"),
        ([{"text": "a"}], "has no chosen"),
        ([{**ONE, "chosen": 3}], "must be two texts, or two lists of messages"),
        ([{**ONE, "chosen": messages("a", "b")}], "must be two texts, or two lists of messages"),
        ([{**ONE, "prompt": 3}], "must be a text or a list of messages, not int"),
        ([{**ONE, "prompt": " "}], "the prompt is empty"),
        ([{"chosen": "b", "rejected": "c"}], "no dialogues that begin with 'Human:'"),
        ([{"chosen": f"{HH} b", "rejected": "\n\nHuman: Other?\n\nAssistant: c"}], "no turn in common"),
        (
            [{"chosen": messages("a", "b", "c"), "rejected": messages("a", "b", "d")}],
            "a turn that is not the assistant's",
        ),
        ([{"chosen": [{"role": "user"}], "rejected": [{"role": "user"}]}], "must have a role and a content"),
        ([{"chosen": [], "rejected": []}], "at least one"),
        ([ONE, {**ONE, "chosen": "d"}], "all pairs have the same prompt"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_place(
    rows: list[Any], message: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        prepare_preferences(PreferenceRequest([write(tmp_path / "rows.jsonl", rows)]), tokenizer)


def test_a_conversation_is_not_written_by_a_template(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"chosen": f"{HH} b", "rejected": f"{HH} c"}])
    with pytest.raises(InputError, match=r"rows.jsonl:1 is a conversation, which the template completion cannot write"):
        prepare_preferences(PreferenceRequest([source], form=COMPLETION), tokenizer)


def test_a_cut_off_file_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ONE).encode() * 50)[:-9])
    with pytest.raises(InputError, match="damaged or cut off"):
        prepare_preferences(PreferenceRequest([str(path)]), tokenizer)


@pytest.mark.skipif(not PREFERENCES.is_dir(), reason="needs ../shared/data/preferences")
@pytest.mark.parametrize(
    ("name", "form", "pairs", "prompts", "counts"),
    [
        ("qa_feedback", COMPLETION, 2616, 488, (0, 0)),
        ("ultrafeedback-test", CHAT, 200, 200, (0, 1)),
        ("hh_harmless", CHAT, 2312, None, (4, 0)),
    ],
)
def test_real_preferences_are_read(
    name: str, form: Any, pairs: int, prompts: int | None, counts: tuple[int, int]
) -> None:
    found = read_pairs(str(PREFERENCES / f"{name}.jsonl.gz"))
    assert len(found) == pairs
    assert choose_form(found) == form
    assert prompts in (None, len({pair.prompt_key for pair in found}))
    empty = sum(pair.has_empty_answer for pair in found)
    assert (empty, sum(pair.has_equal_answers and not pair.has_empty_answer for pair in found)) == counts
