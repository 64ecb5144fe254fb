"""Rewards: a model reads prompt and completion in its own tokens, a function is called with texts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from rewards import save_reward, write_functions
from tiny import save_tiny_llama, with_begin_token
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from mixln.data import train_tokenizer
from mixln.data.prompt_rows import Prompt
from mixln.errors import InputError
from mixln.evaluation.rewards import ModelReward, open_reward
from mixln.tasks.reward_model import load_reward_model

TEXTS = ["What is a class?", "Why?", "How many lambdas are there in a dictionary of names?"]
ANSWERS = [" An object.", "", " Nobody has ever counted them, and nobody is going to."]


def prompts_of(texts: list[str]) -> list[Prompt]:
    return [Prompt(text, None, f"rows.jsonl:{number}") for number, text in enumerate(texts, start=1)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Another one than the policies have."""
    return with_begin_token(train_tokenizer(TEXTS, 280))


def score_alone(folder: Path, ids: list[Any]) -> float:
    """By nothing but the model's own forward, which reads the last token of one row."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


def test_a_model_scores_each_text_as_it_does_alone(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """In its own tokens, behind its own begin token, at the end token, whatever else is in the batch; one is empty."""
    folder = save_reward(tmp_path / "reward", tokenizer)
    expected: list[float] = []
    for text, answer in zip(TEXTS, ANSWERS, strict=True):
        ids = parts(tokenizer, text, answer)
        assert ids[0] == tokenizer.bos_token_id
        expected.append(score_alone(folder, [*ids, tokenizer.eos_token_id]))
    for batch_size in (1, 3):
        for source in (folder, folder / "model"):
            reward = open_reward(str(source), batch_size=batch_size)
            assert reward.score(prompts_of(TEXTS), ANSWERS) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3
    judge = load_reward_model(folder / "model")
    assert judge.rewards(TEXTS[::2], ANSWERS[::2]) == pytest.approx(expected[::2], abs=1e-5), "as for its own pairs"


def parts(tokenizer: PreTrainedTokenizerFast, text: str, answer: str) -> list[Any]:
    """Tokens of prompt and answer together, or, where a token would span both, of each."""
    whole: Any = tokenizer(text + answer)["input_ids"]
    before: Any = tokenizer(text)["input_ids"]
    if whole[: len(before)] == before:
        return whole
    behind: Any = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*before, *behind]


def test_a_conversation_is_written_by_the_reward_s_own_template(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A text too, if that is the form that the reward was trained in."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    folder = save_reward(tmp_path / "reward", own, (0.7, 0.6, 0.8), form={"name": "chat", "prompt": "", "answer": ""})
    conversation = Prompt("", ({"role": "user", "content": "Why?"},), "here")
    expected: list[float] = []
    for answer in ("So.", ""):
        ids: Any = own(f"[user]Why?[assistant]{answer}", add_special_tokens=False)["input_ids"]
        expected.append(score_alone(folder, [*ids, own.eos_token_id]))
    reward = open_reward(str(folder))
    assert reward.score([conversation] * 2, ["So.", ""]) == pytest.approx(expected, abs=1e-5)
    assert reward.score(prompts_of(["Why?"] * 2), ["So.", ""]) == pytest.approx(expected, abs=1e-5)
    plain = open_reward(str(save_reward(tmp_path / "plain", tokenizer, (0.7, 0.6, 0.8))))
    with pytest.raises(InputError, match="here is a conversation, which the template completion cannot write"):
        plain.score([conversation], ["So."])


def test_a_text_that_is_too_long_loses_its_beginning(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = save_reward(tmp_path / "reward", tokenizer, max_position_embeddings=12)
    reward = open_reward(str(folder))
    assert isinstance(reward, ModelReward)
    ids = [*parts(tokenizer, TEXTS[2], ANSWERS[2]), tokenizer.eos_token_id]
    assert len(ids) > 12
    expected = score_alone(folder, [ids[0], *ids[-11:]])
    assert reward.score(prompts_of(TEXTS[2:]), ANSWERS[2:]) == pytest.approx([expected], abs=1e-5)
    assert reward.cut == 1


def test_a_reward_is_known_by_its_content(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    one, two = (open_reward(str(save_reward(tmp_path / name, tokenizer))) for name in ("one", "two"))
    other = open_reward(str(save_reward(tmp_path / "other", tokenizer, hidden_size=16)))
    assert one.identity() == two.identity() != other.identity()
    path = write_functions(tmp_path)
    named = [open_reward(f"python:{path}:{name}").identity() for name in ("vowels", "vowels", "prompts_too")]
    assert named[0] == named[1] != named[2]


def test_functions_get_texts(tmp_path: Path) -> None:
    path = write_functions(tmp_path)
    reward = open_reward(f"python:{path}:vowels")
    assert reward.score(prompts_of(["a", "b"]), ["eaux", "xyz"]) == [0.75, 0.0]
    reward = open_reward(f"python:{path}:prompts_too")
    conversation = Prompt("", ({"role": "user", "content": "Why?"},), "here")
    assert reward.score([*prompts_of(["abc"]), conversation], ["", ""]) == [3.0, float(len("user: Why?"))]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one_short", r"returned 1 rewards for 2 completions"),
        ("not_a_number", r"gave nan, which is no finite number, to the completion 'x' of the prompt rows\.jsonl:1"),
        ("raises", r"raises ZeroDivisionError: division by zero \(line \d+\)"),
        ("a_text", r"returned a str: return a list"),
    ],
)
def test_what_a_function_must_return(function: str, message: str, tmp_path: Path) -> None:
    reward = open_reward(f"python:{write_functions(tmp_path)}:{function}")
    with pytest.raises(InputError, match=message):
        reward.score(prompts_of(["a", "b"]), ["x", "y"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("python:", "must be python:FILE:FUNCTION"),
        ("python:rewards.py", "must be python:FILE:FUNCTION"),
        ("python:nowhere.py:vowels", "cannot be read: No such file"),
        ("python:{folder}/rewards.txt:vowels", "is no Python file"),
        ("python:{folder}/rewards.py:vowel", "vowel does not exist in .*Did you mean 'vowels'"),
        ("python:{folder}/rewards.py:number", "number is no function"),
        ("python:{folder}/broken.py:vowels", r"raises NameError: .*\(line 1\)"),
        ("{folder}/nowhere", "there is no folder"),
        ("{folder}/llama", "is a language model, which gives no rewards"),
        ("{folder}/two", "is a classifier with 2 scores of a text, and 1 is wanted"),
        ("{folder}/nan", "not a number"),
        ("{folder}/endless", "was not trained to see the end of a text"),
        ("{folder}/unread", "does not say how often the reward is right"),
    ],
)
def test_what_is_no_reward(source: str, message: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    write_functions(tmp_path)
    (tmp_path / "broken.py").write_text("undefined\n")
    save_tiny_llama(tmp_path / "llama", tokenizer, 1)
    save_reward(tmp_path / "two", tokenizer, labels=2)
    save_reward(tmp_path / "unread", tokenizer)
    (tmp_path / "unread" / "reward.json").write_text('{"accuracy": 0.7}')
    save_reward(tmp_path / "endless", tokenizer)
    tokenizer.save_pretrained(tmp_path / "endless" / "model")
    spoiled: Any = AutoModelForSequenceClassification.from_pretrained(
        save_reward(tmp_path / "nan", tokenizer) / "model"
    )
    with torch.no_grad():
        spoiled.score.weight.fill_(float("nan"))
    spoiled.save_pretrained(tmp_path / "nan" / "model")
    with pytest.raises(InputError, match=message):
        open_reward(source.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("accuracy", "is_refused"),
    [
        (None, False),
        ((0.7, 0.6, 0.8), False),
        ((0.55, 0.48, 0.62), True),
        ((0.3, 0.2, 0.4), True),
        ((0.5, 0.5, 0.9), True),
    ],
)
def test_a_reward_that_cannot_be_told_from_a_coin_is_refused(
    accuracy: Any, is_refused: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    reward = open_reward(str(save_reward(tmp_path / "reward", tokenizer, accuracy)))
    reward.require_above_chance(force=True)
    if not is_refused:
        reward.require_above_chance(force=False)
        return
    with pytest.raises(InputError, match=r"of 200 held-out pairs, which cannot be told from a coin .*force"):
        reward.require_above_chance(force=False)
