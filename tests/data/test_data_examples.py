"""Examples of prompts and answers: forms, tokens, packing, and what does not fit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_llama, with_begin_token
from transformers import PreTrainedTokenizerFast

from mixln.data import PreparedData
from mixln.data.conversations import PLAIN_CHAT, ExampleEncoder, Tokens, example_reader
from mixln.data.example_data import ExampleData, ExampleRequest, prepare_examples
from mixln.data.example_rows import ExampleRows, best_fit
from mixln.data.prompts import INSTRUCTION, load_template
from mixln.errors import InputError
from mixln.models.encoding import IGNORED_TARGET
from mixln.studies.fine_tuned_model import sentences_on_examples
from mixln.tasks.choice import choose_objective

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROWS = {
    "instruction": {"instruction": "Name a class.", "input": "", "output": "the class is object"},
    "completion": {"prompt": "the name of the statement", "completion": " is assert"},
    "messages": {
        "messages": [
            {"role": "user", "content": "what is a function?"},
            {"role": "assistant", "content": "an object that is called"},
            {"role": "user", "content": "and a class?"},
            {"role": "assistant", "content": "an object too"},
        ]
    },
}
ANSWERS = {
    "instruction": ["the class is object"],
    "completion": [" is assert"],
    "messages": ["an object that is called", "an object too"],
}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def plain(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer in new, since a chat template may be given to it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )  # fmt: skip


def encoded(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Tokens:
    read = example_reader(row, "rows:1", tokenizer, None)
    (tokens,) = ExampleEncoder(tokenizer).encode([read(row, "rows:1")])
    return tokens


def text_of(tokenizer: PreTrainedTokenizerFast, ids: Any) -> str:
    return str(tokenizer.decode(ids))


def learned(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The texts of the runs of tokens that are learned."""
    runs: list[list[int]] = []
    for place, (token, is_answer) in enumerate(zip(tokens.ids.tolist(), tokens.is_answer.tolist(), strict=True)):
        if is_answer:
            if place == 0 or not tokens.is_answer[place - 1]:
                runs.append([])
            runs[-1].append(token)
    return [text_of(tokenizer, run) for run in runs]


@pytest.mark.parametrize("form", ROWS)
def test_answers_are_learned_with_their_end_and_nothing_else_is(form: str, data: PreparedData) -> None:
    tokenizer: Any = plain(data.tokenizer)
    tokenizer.chat_template = CHATML
    tokens = encoded(ROWS[form], tokenizer)
    assert learned(tokens, tokenizer) == [f"{answer}{tokenizer.eos_token}" for answer in ANSWERS[form]]
    whole = text_of(tokenizer, tokens.ids)
    if form == "messages":
        conversation = ROWS[form]["messages"]
        assert whole == tokenizer.apply_chat_template(conversation, tokenize=False)
        assert tokens.ids.tolist() == tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"]


def test_a_prompt_has_the_tokens_that_it_has_alone(data: PreparedData) -> None:
    tokenizer = plain(data.tokenizer)
    row = {"prompt": "the sta", "completion": "tement is"}  # together a token may span both
    tokens = encoded(row, tokenizer)
    prompt = tokenizer("the sta")["input_ids"]
    assert tokens.ids[: len(prompt)].tolist() == prompt
    assert text_of(tokenizer, tokens.ids) == f"the statement is{tokenizer.eos_token}"


def test_a_tokenizer_that_begins_texts_does_so_once(data: PreparedData) -> None:
    tokenizer = with_begin_token(data.tokenizer)
    for form in ("instruction", "completion"):
        ids = encoded(ROWS[form], tokenizer).ids
        assert ids[0] == tokenizer.bos_token_id
        assert (ids == tokenizer.bos_token_id).sum() == 1
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    ids = encoded(ROWS["messages"], tokenizer).ids
    assert (ids == tokenizer.bos_token_id).tolist() == [True] + [False] * (len(ids) - 1)


def test_special_tokens_that_are_spelled_in_a_field_are_text(data: PreparedData) -> None:
    tokenizer = plain(data.tokenizer)
    tokens = encoded({"prompt": "say <|endoftext|>", "completion": " no"}, tokenizer)
    assert (tokens.ids == tokenizer.eos_token_id).tolist() == [False] * (len(tokens) - 1) + [True]


def test_the_end_is_learned_where_padding_is_the_same_token(data: PreparedData) -> None:
    tokenizer: Any = plain(data.tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == tokenizer.bos_token_id
    examples = ExampleRows([encoded(ROWS["completion"], tokenizer)], 40, tokenizer.eos_token_id)
    batch = examples.batch([0])
    assert batch.targets.flatten().tolist().count(tokenizer.eos_token_id) == 1
    assert batch.num_predicted_tokens == examples.num_predicted_tokens


def test_a_tokenizer_without_a_chat_template_gets_one(data: PreparedData, tmp_path: Path) -> None:
    tokenizer = plain(data.tokenizer)
    prepared = prepare(tmp_path, [ROWS["messages"]] * 2 + [messages(number) for number in range(20)], tokenizer)
    assert prepared.tokenizer.chat_template == PLAIN_CHAT
    tokens = encoded(ROWS["messages"], prepared.tokenizer)
    assert learned(tokens, tokenizer) == [f"{answer}{tokenizer.eos_token}" for answer in ANSWERS["messages"]]
    assert text_of(tokenizer, tokens.ids).startswith("User: what is a function?\n\nAssistant: an object")


def messages(number: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"number {number}?"},
            {"role": "assistant", "content": f"it is {number}"},
        ]
    }


def completion(number: int, words: int = 3) -> dict[str, str]:
    draw = random.Random(number)
    return {"prompt": f"number {number} " + "name " * draw.randint(0, words), "completion": f"is {number} " * 2}


def prepare(
    folder: Path, rows: list[Any], tokenizer: PreTrainedTokenizerFast, name: str = "rows.jsonl", **options: Any
) -> ExampleData:
    request = ExampleRequest(
        [write(folder / name, rows)], **{"sequence_length": 64, "validation_fraction": 0.2, **options}
    )
    return prepare_examples(request, tokenizer)


def test_every_answer_is_in_the_rows_once_and_no_example_is_cut(data: PreparedData, tmp_path: Path) -> None:
    tokenizer: Any = plain(data.tokenizer)
    rows = [completion(number, 8) for number in range(60)]
    prepared = prepare(tmp_path, rows, tokenizer)
    found: list[str] = []
    for part in (prepared.train, prepared.validation):
        batch = part.batch(range(len(part)))
        for ids, targets, positions in zip(
            *(one.tolist() for one in (batch.input_ids, batch.targets, batch.position_ids)), strict=True
        ):
            starts = [place for place, position in enumerate(positions) if position == 0]
            for start, end in zip(starts, [*starts[1:], len(positions)], strict=True):
                wanted = [token for token in targets[start:end] if token != IGNORED_TARGET]
                if not wanted:
                    assert set(ids[start:end]) <= {tokenizer.eos_token_id}  # padding
                    continue
                text = [*ids[start:end], targets[end - 1]] if targets[end - 1] != IGNORED_TARGET else ids[start:end]
                found.append(text_of(tokenizer, text))
                assert positions[start:end] == list(range(end - start))
                assert wanted[-1] == tokenizer.eos_token_id
    assert sorted(found) == sorted(f"{row['prompt']}{row['completion']}{tokenizer.eos_token}" for row in rows)
    assert (
        prepared.counts[str(tmp_path / "rows.jsonl")].validation
        + len([index for packed in prepared.train.packed for index in packed])
        == 60
    )


def test_held_out_examples_whose_prompt_is_trained_on_are_counted(data: PreparedData, tmp_path: Path) -> None:
    tokenizer = plain(data.tokenizer)
    held_out = write(tmp_path / "held_out.jsonl", [completion(number) for number in range(15, 30)])
    rows = [completion(number) for number in range(20)]
    prepared = prepare(tmp_path, rows, tokenizer, validation_sources=[held_out])
    counts = prepared.counts[held_out]
    assert (counts.read, counts.validation, counts.shared) == (15, 15, 5)
    assert "15 held out, 5 of these with a prompt that is trained on too" in "".join(
        sentences_on_examples({held_out: counts})
    )
    apart = prepare(tmp_path, rows, tokenizer, validation_fraction=0.5)
    assert [one.shared for one in apart.counts.values()] == [0]


def test_a_packed_example_has_the_loss_that_it_has_alone(data: PreparedData, tmp_path: Path) -> None:
    tokenizer = plain(data.tokenizer)
    prepared = prepare(tmp_path, [completion(number) for number in range(30)], tokenizer)
    model = tiny_llama(tokenizer, 2)
    objective = choose_objective(model, 64, data=prepared.validation)(model)
    batch = prepared.train.batch(range(len(prepared.train)))
    with torch.no_grad():
        packed = objective(batch.input_ids, batch.position_ids, batch.targets).item()
        alone = 0.0
        for example in prepared.train._examples:
            ids = torch.from_numpy(example.ids)[None]
            logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            losses = -logits.gather(1, ids[0, 1:, None])[:, 0]
            alone += losses[torch.from_numpy(example.is_answer[1:])].sum().item()
    assert packed == pytest.approx(alone, rel=1e-5)


def test_best_fit_fills_rows_and_loses_nothing() -> None:
    draw = random.Random(0)
    sizes = [draw.randint(1, 60) for _ in range(500)]
    rows = best_fit(sizes, 64)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert all(sum(sizes[index] for index in row) <= 64 for row in rows)
    assert sum(sizes) / (64 * len(rows)) > 0.95


def test_equal_prompts_are_on_one_side(data: PreparedData, tmp_path: Path) -> None:
    rows = [{"prompt": f"number {number // 4}", "completion": f" is {number}"} for number in range(80)]
    prepared = prepare(tmp_path, rows, plain(data.tokenizer))
    sides = []
    for part in (prepared.train, prepared.validation):
        texts = [text_of(prepared.tokenizer, example.ids) for example in part._examples]
        sides.append({text.split(" is ")[0] for text in texts})
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 20


def test_what_does_not_fit_is_refused_dropped_or_loses_its_beginning(data: PreparedData, tmp_path: Path) -> None:
    tokenizer = with_begin_token(data.tokenizer)
    long = {"prompt": "first words " + "name " * 90, "completion": " is the answer"}
    hopeless = {"prompt": "why", "completion": " because" * 90}
    rows = [completion(number) for number in range(30)] + [long, hopeless]
    with pytest.raises(
        InputError, match=r"2 of 32 examples do not fit into a row of 64 tokens; the longest \(.*:3\d\)"
    ):
        prepare(tmp_path, rows, tokenizer)
    dropped = prepare(tmp_path, rows, tokenizer, too_long="drop")
    (counts,) = dropped.counts.values()
    assert (counts.read, counts.dropped, counts.cut) == (32, 2, 0)
    cut = prepare(tmp_path, rows, tokenizer, too_long="cut")
    (counts,) = cut.counts.values()
    assert (counts.dropped, counts.cut) == (1, 1)
    texts = [example for part in (cut.train, cut.validation) for example in part._examples if len(example) == 65]
    (shorter,) = texts
    assert shorter.ids[0] == tokenizer.bos_token_id
    text = text_of(tokenizer, shorter.ids)
    assert "first" not in text
    assert text.endswith(f" is the answer{tokenizer.eos_token}")


def test_weights_say_how_often_an_epoch_goes_through_a_source(data: PreparedData, tmp_path: Path) -> None:
    tokenizer = plain(data.tokenizer)
    sources = [
        write(
            tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {number}", "completion": " so"} for number in range(100)]
        )
        for name in "ab"
    ]
    request = ExampleRequest(sources, validation_fraction=0.1, weights=[2, 0.5], sequence_length=64)
    prepared = prepare_examples(request, tokenizer)
    texts = [text_of(tokenizer, example.ids) for example in prepared.train._examples]
    counts = {name: sum(text.startswith(f"{name} ") for text in texts) for name in "ab"}
    held_out = [one.validation for one in prepared.counts.values()]
    assert counts["a"] == 2 * (100 - held_out[0])
    assert 30 <= counts["b"] <= 60


def test_the_fingerprint_tells_what_is_learned(data: PreparedData, tmp_path: Path) -> None:
    tokenizer = plain(data.tokenizer)
    rows = [completion(number) for number in range(30)]
    first = prepare(tmp_path, rows, tokenizer).fingerprint
    assert first == prepare(tmp_path, rows, tokenizer, name="other.jsonl").fingerprint
    assert first != prepare(tmp_path, rows, tokenizer, sequence_length=80).fingerprint
    changed = [{**rows[0], "completion": "another"}, *rows[1:]]
    assert first != prepare(tmp_path, changed, tokenizer).fingerprint
    moved = [{"prompt": row["prompt"] + row["completion"][:3], "completion": row["completion"][3:]} for row in rows]
    assert first != prepare(tmp_path, moved, tokenizer).fingerprint


def test_a_template_of_ones_own(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "form.yaml").write_text("prompt: 'Q: {{ question }} A:'\nanswer: ' {{ reply }}'\n", encoding="utf-8")
    template = load_template(str(tmp_path / "form.yaml"))
    row = {"question": "why", "reply": "so"}
    read = example_reader(row, "rows:1", data.tokenizer, template)
    assert read(row, "rows:1").segments == [("Q: why A:", False), (" so", True)]


def test_the_instruction_template_names_an_input_only_if_there_is_one() -> None:
    with_input = INSTRUCTION.prompt({"instruction": "Add.", "input": "1 2", "output": "3"}, "here")
    assert "### Input:\n1 2\n\n### Response:\n" in with_input
    assert "Input" not in INSTRUCTION.prompt({"instruction": "Add.", "input": "", "output": "3"}, "here")
    assert "Input" not in INSTRUCTION.prompt({"instruction": "Add."}, "here")


GOOD = {"prompt": "a", "completion": " b"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no examples"),
        ([{"text": "a"}], r"rows.jsonl:1 has the fields text. Known are: messages; prompt, completion;"),
        ([GOOD, {"prompt": "a"}], "rows.jsonl:2 has no completion, which the first row has"),
        ([GOOD, {"prompt": "a", "completion": "  "}], "rows.jsonl:2 has an empty answer"),
        ([{"instruction": "a", "output": ""}], "rows.jsonl:1 has an empty answer"),
        ([{"messages": []}], "messages must be a list of"),
        ([{"messages": "hello"}], "messages must be a list of"),
        ([{"messages": [{"role": "user"}]}], "a message must have a role and a content"),
        ([{"messages": [{"role": "user", "content": 3}]}], "the content of a message must be a text"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "has no turn of the assistant"),
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}], "an empty answer"),
        ([GOOD], "there is no example to validate on|there is no example to train on"),
        ([3], "rows.jsonl:1 is not a JSON object, but int"),
    ],
)
def test_bad_rows_are_refused_with_their_place(
    rows: list[Any], message: str, data: PreparedData, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, rows, plain(data.tokenizer))


def test_bad_requests_are_refused(data: PreparedData, tmp_path: Path) -> None:
    tokenizer, rows = plain(data.tokenizer), [completion(number) for number in range(30)]
    bad: list[tuple[dict[str, Any], str]] = [
        ({"weights": [1, 2]}, "`weights` must have a positive number for each of the 1 sources"),
        ({"weights": [0.0]}, "`weights` must have a positive number"),
        ({"validation_fraction": 0.0}, "nothing is held out"),
        ({"validation_fraction": 1.0}, "at least 0 and below 1"),
    ]
    for options, message in bad:
        with pytest.raises(InputError, match=message):
            prepare(tmp_path, rows, tokenizer, **options)
    with pytest.raises(InputError, match="is not a file"):
        prepare_examples(ExampleRequest([str(tmp_path / "none.jsonl")]), tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no file of JSON lines"):
        prepare_examples(ExampleRequest([str(tmp_path / "empty")]), tokenizer)
    form = tmp_path / "form.yaml"
    form.write_text("[1]", encoding="utf-8")
    with pytest.raises(InputError, match="must have a prompt and an answer"):
        load_template(str(form))
    form.write_text("prompt: '{{ a'\nanswer: b", encoding="utf-8")
    broken = load_template(str(form))
    with pytest.raises(InputError, match="not a jinja2 template"):
        broken.prompt({}, "here")
    with pytest.raises(InputError, match="there is no prompt template 'none'"):
        load_template("none")
    form.write_text("prompt: '{{ input_text }}'\nanswer: b", encoding="utf-8")
    other = load_template(str(form))
    with pytest.raises(InputError, match=r"'input_text' is undefined\. The row has the fields: prompt"):
        other.prompt({"prompt": "a"}, "rows:1")


def test_a_chat_template_that_rewrites_earlier_turns_is_refused(data: PreparedData) -> None:
    tokenizer = plain(data.tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %}{% if loop.last or message['role'] == 'user' %}{{ message['content'] }}"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    with pytest.raises(InputError, match="changes earlier turns when a later one follows"):
        encoded(ROWS["messages"], tokenizer)


def test_a_tokenizer_without_an_end_is_refused(data: PreparedData) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=data.tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="no end-of-text token"):
        ExampleEncoder(tokenizer)


def test_rows_that_are_not_there_are_refused() -> None:
    rows = ExampleRows([Tokens(np.arange(3), np.array([False, True, True]))], 8, 0)
    with pytest.raises(IndexError, match="row 1 of a dataset of 1 rows"):
        rows.batch([1])
