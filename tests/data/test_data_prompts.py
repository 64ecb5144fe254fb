"""Prompts that a policy answers: the forms of rows, the split by prompt, and their tokens."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import SHARED, with_begin_token

from mixln.data import PreparedData
from mixln.data.conversations import ExampleEncoder, example_reader
from mixln.data.preference_rows import read_pairs
from mixln.data.prompt_rows import PromptRequest, fitting_prompts, prompt_tokens, read_prompts
from mixln.data.prompts import PromptTemplate
from mixln.errors import InputError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def questions(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"What is {number}?"} for number in range(count)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Why?"}, "Why?"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, "Why?"),
        ({"prompt": turns("Why?")}, turns("Why?")),
        ({"messages": turns("Why?", "So.")}, turns("Why?")),
        ({"messages": turns("Why?", "So.", "And?")}, turns("Why?", "So.", "And?")),
        ({"chosen": turns("Why?", "So."), "rejected": turns("Why?", "No.")}, turns("Why?")),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: So.",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: No.",
            },
            turns("Hi", "Hello", "Why?"),
        ),
        ({"chosen": "\n\nHuman: Why?\n\nAssistant: So."}, turns("Why?")),
    ],
)
def test_the_forms_of_rows(row: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    sources = [write(tmp_path / "one.jsonl", [row])]
    held_out = [write(tmp_path / "held_out.jsonl", questions(2))]
    (prompt,) = read_prompts(PromptRequest(sources, held_out)).train
    assert (prompt.text if prompt.messages is None else list(prompt.messages)) == expected


@pytest.mark.parametrize("name", ["qa_feedback", "hh_harmless", "ultrafeedback"])
def test_a_policy_is_asked_what_a_reward_model_is_trained_on(name: str) -> None:
    """Rows of preferences give one prompt, whoever reads them."""
    source = SHARED / "data" / "preferences" / f"{name}.jsonl.gz"
    if not source.is_file():
        pytest.skip(f"{source.name} is not here")
    prompts = read_prompts(PromptRequest([str(source)]))
    read = {json.dumps(prompt.value, sort_keys=True) for prompt in [*prompts.train, *prompts.held_out]}
    assert read == {json.dumps(pair.prompt, sort_keys=True) for pair in read_pairs(str(source))}


def test_instructions_and_templates(tmp_path: Path) -> None:
    held_out = [write(tmp_path / "held_out.jsonl", [{"instruction": "Count.", "q": one} for one in "ab"])]
    sources = [write(tmp_path / "one.jsonl", [{"instruction": "Add.", "input": "1 2", "q": "c"}])]
    (prompt,) = read_prompts(PromptRequest(sources, held_out, template=PromptTemplate("own", "Q: {{ q }}", ""))).train
    assert prompt.text == "Q: c"
    held_out = [write(tmp_path / "others.jsonl", [{"instruction": one} for one in "ab"])]
    (prompt,) = read_prompts(PromptRequest(sources, held_out)).train
    assert "### Instruction:\nAdd." in prompt.text
    assert prompt.text.endswith("### Response:\n")


def test_a_prompt_is_on_one_side_and_taken_once(tmp_path: Path) -> None:
    rows = questions(60)
    source = write(tmp_path / "rows.jsonl", [*rows, *rows[:20]])
    data = read_prompts(PromptRequest([source], validation_fraction=0.3))
    train, held_out = ({prompt.key for prompt in part} for part in (data.train, data.held_out))
    assert not train & held_out
    assert len(train) + len(held_out) == len(data.train) + len(data.held_out) == 60
    assert (data.counts.read, data.counts.repeated) == (80, 20)
    assert 8 < len(held_out) < 30
    turned = read_prompts(PromptRequest([write(tmp_path / "turned.jsonl", rows[::-1])], validation_fraction=0.3))
    assert [prompt.key for prompt in turned.held_out] == [prompt.key for prompt in data.held_out]
    few = read_prompts(PromptRequest([source], validation_fraction=0.3, max_validation_prompts=3))
    assert few.held_out == data.held_out[:3]
    assert few.train == data.train, "what is not completed is not trained on either"
    assert few.counts.left == len(held_out) - 3


def test_a_prompt_that_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", questions(10))
    held_out = write(tmp_path / "held_out.jsonl", questions(3))
    data = read_prompts(PromptRequest([source], [held_out]))
    assert {prompt.text for prompt in data.train} == {f"What is {number}?" for number in range(3, 10)}
    assert data.counts.repeated == 3


@pytest.mark.parametrize("begins", [False, True])
def test_tokens_are_those_of_fine_tuning(begins: bool, data: PreparedData, tmp_path: Path) -> None:
    """Also where a prompt spells a special token, and where a chat template writes one."""
    tokenizer = with_begin_token(data.tokenizer) if begins else copy.deepcopy(data.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})  # pyright: ignore[reportArgumentType]
    tokenizer.chat_template = CHATML
    rows = [
        {"prompt": f"What is {tokenizer.eos_token}?", "completion": "an end"},
        {"prompt": turns("Why?"), "completion": [{"role": "assistant", "content": "So."}]},
    ]
    held_out = write(tmp_path / "held_out.jsonl", questions(2))
    for row in rows:
        prompts = read_prompts(PromptRequest([write(tmp_path / "rows.jsonl", [row])], [held_out])).train
        (ids,) = prompt_tokens(prompts, tokenizer)
        example = example_reader(row, "here", tokenizer, None)(row, "here")
        (tokens,) = ExampleEncoder(tokenizer).encode([example])
        assert ids == tokens.ids[~tokens.is_answer][: len(ids)].tolist()
        assert tokens.is_answer[len(ids)], "the answer begins behind the prompt"


def test_prompts_that_are_too_long_for_one_model_are_left_out_for_all(data: PreparedData, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [*questions(20), {"prompt": "long " * 50}])
    held_out = write(tmp_path / "held_out.jsonl", [{"prompt": f"And {number}?"} for number in range(4)])
    read = read_prompts(PromptRequest([source], [held_out]))
    fits = [(data.tokenizer, 10_000), (data.tokenizer, 40)]
    with pytest.raises(InputError, match=r"1 of 25 prompts leave no room .*rows\.jsonl:21\) has \d+.*too_long=drop"):
        fitting_prompts(read, fits, drop=False)
    fitted = fitting_prompts(read, fits, drop=True)
    assert [prompt.text for prompt in fitted.train] == [prompt.text for prompt in read.train[:-1]]
    assert (fitted.counts.dropped, fitted.counts.train) == (1, 20)
    assert fitting_prompts(read, fits[:1], drop=False) is read


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no prompts"),
        ([{"prompt": "  "}], "has an empty prompt"),
        ([{"prompt": 5}], "must be a text or a list of messages, not int"),
        ([{"question": "?"}], "has the fields question"),
        ([{"messages": turns("Why?")[1:]}], "has no turn before the assistant's"),
        ([{"messages": "Why?"}], "must be a list of"),
        (questions(1), "0 prompts are held out|there is no prompt to train on"),
    ],
)
def test_what_is_no_prompt_is_refused(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_prompts(PromptRequest([write(tmp_path / "rows.jsonl", rows)]))
