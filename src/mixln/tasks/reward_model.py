"""A reward model: what it gives to answers, in the form and the tokens that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixln.data.conversations import Message
from mixln.data.preferences import CHAT, AnswerWriter
from mixln.data.prompts import COMPLETION, PromptTemplate
from mixln.errors import InputError
from mixln.models.classifier import load_classifier
from mixln.models.load import load_tokenizer
from mixln.modes import evaluation_mode
from mixln.records import decode, read_json

REPORT_FILE = "reward.json"
"""In the folder of a reward model and in that of its run: what is known of it."""

Report = Callable[[int, int], object]
"""Called with texts done, and texts in all."""


@dataclass(frozen=True)
class TextForm:
    """How a prompt and an answer are written, as a file has it.

    Attributes:
        name: `chat`, for the chat template of the tokenizer, or the name of a template.
        prompt: of a template; empty for `chat`.
        answer: of a template.
    """

    name: str
    prompt: str = ""
    answer: str = ""

    @classmethod
    def of(cls, form: PromptTemplate | Literal["chat"]) -> TextForm:
        """Return the form of a template, or of the chat template."""
        return cls(form) if isinstance(form, str) else cls(form.name, form.prompt_template, form.answer_template)

    @property
    def form(self) -> PromptTemplate | Literal["chat"]:
        """What an `AnswerWriter` takes."""
        return CHAT if self.name == CHAT else PromptTemplate(self.name, self.prompt, self.answer)


class RewardModel:
    """Gives each answer to a prompt a number; only differences between answers to one prompt mean something.

    Args:
        model: a sequence classifier with one score, which pads with another token than the end token.
        tokenizer: of the model, with that padding token.
        form: how prompts and answers are written.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, form: PromptTemplate | Literal["chat"]
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.form: PromptTemplate | Literal["chat"] = form
        self._writer = AnswerWriter(tokenizer, form)

    def rewards(
        self,
        prompts: Sequence[str | Sequence[Message]],
        answers: Sequence[str],
        *,
        batch_size: int = 16,
        report: Report | None = None,
    ) -> list[float]:
        """Return the reward of each answer to its prompt.

        Args:
            prompts: texts, or lists of messages up to the answer.
            answers: as many texts, without the end token: it is put behind each.
            batch_size: texts that go through the model together.
            report: progress.

        Raises:
            InputError: there are not as many answers as prompts, an answer is empty, or a reward is no number.
        """
        if len(prompts) != len(answers):
            raise InputError(f"there are {len(prompts)} prompts and {len(answers)} answers: give one answer to each")
        places = [f"answer {number}" for number in range(1, len(answers) + 1)]
        found = self._writer.encode(list(zip(prompts, answers, places, strict=True)))
        return self.rewards_of([tokens.ids for tokens in found], batch_size=batch_size, report=report)

    def encode(
        self, prompts: Sequence[str | Sequence[Message]], answers: Sequence[str], places: Sequence[str], longest: int
    ) -> tuple[list[np.ndarray], int]:
        """Return prompts with answers that a policy wrote, which may be empty, in tokens, for `rewards_of`.

        Args:
            prompts: as in `rewards`.
            answers: as many texts.
            places: where the prompts are from, for errors.
            longest: tokens of a text at most; what is longer loses its beginning, behind what a text begins with.

        Returns:
            The tokens, and how many texts were cut.

        Raises:
            InputError: the form cannot write a prompt.
        """
        encoded = self._writer.encode(list(zip(prompts, answers, places, strict=True)), may_be_empty=True)
        texts = [tokens.ids for tokens in encoded]
        begin = np.array(self._writer.begin, dtype=np.int64)
        begun = [len(begin) if np.array_equal(ids[: len(begin)], begin) else 0 for ids in texts]
        fitted = [
            ids if len(ids) <= longest else np.concatenate([ids[:start], ids[len(ids) - longest + start :]])
            for ids, start in zip(texts, begun, strict=True)
        ]
        return fitted, sum(len(ids) > longest for ids in texts)

    def rewards_of(
        self, texts: Sequence[np.ndarray], *, batch_size: int = 16, report: Report | None = None
    ) -> list[float]:
        """Return the rewards of texts that are in tokens already, each with the end token as its last.

        Args:
            texts: each of (tokens,), int64. Those of similar length go through the model together.
            batch_size: see `rewards`.
            report: progress.

        Raises:
            InputError: a reward is infinite or not a number.
        """
        rewards = [0.0] * len(texts)
        done = 0
        with torch.no_grad(), evaluation_mode(self.model):
            for places in _batches_by_length(texts, batch_size):
                ids, mask = _padded([texts[place] for place in places], self.tokenizer.pad_token_id)
                device = self.model.device
                logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
                for place, reward in zip(places, logits.float().squeeze(-1).tolist(), strict=True):
                    rewards[place] = reward
                done += len(places)
                if report is not None:
                    report(done, len(texts))
        wrong = [place for place, reward in enumerate(rewards) if not np.isfinite(reward)]
        if wrong:
            raise InputError(
                f"{len(wrong)} of {len(texts)} rewards are infinite or not a number (NaN), the first of text "
                f"{wrong[0] + 1}: the model is damaged, or its training diverged. Give another model"
            )
        return rewards


def load_reward_model(folder: str | Path) -> RewardModel:
    """Open a reward model: the folder of a run of `mixln reward`, the model in it, or any other with one score.

    One that mixln did not train has no record of its form: it reads conversations if its tokenizer has a chat template,
    else prompt and answer as they are.

    Raises:
        InputError: it is no reward model, or its tokenizer pads with the end token, so that the end is not seen.
    """
    folder = Path(folder)
    place = folder / "model" if (folder / "model" / REPORT_FILE).is_file() else folder
    model, new = load_classifier(str(place))
    if new:
        raise InputError(
            f"{folder} is a language model, which gives no rewards: train a reward model of it first (mixln reward)"
        )
    tokenizer = load_tokenizer(str(place))
    pad, known = tokenizer.pad_token_id, model.config.get_text_config().pad_token_id
    if pad is None or pad == tokenizer.eos_token_id or pad != known:
        raise InputError(
            f"{folder} was not trained to see the end of a text: its padding token is {tokenizer.pad_token!r} (the "
            f"model's: {known}), and its end token {tokenizer.eos_token!r}. Give it a padding token of its own in "
            "tokenizer and config, or train it with mixln reward"
        )
    default = CHAT if tokenizer.chat_template else COMPLETION
    return RewardModel(model, tokenizer, recorded_form(place) or default)


def recorded_form(folder: Path) -> PromptTemplate | Literal["chat"] | None:
    """Return the form that the report in a folder names; None: there is no report.

    Raises:
        InputError: the report is damaged.
    """
    path = folder / REPORT_FILE
    if not path.is_file():
        return None
    found: Any = read_json(path)
    if not isinstance(found, dict) or "form" not in found:
        raise InputError(f"{path} is damaged: it names no form. Copy the folder anew")
    return decode(TextForm, found["form"], f"{path}: form").form


def form_record(form: PromptTemplate | Literal["chat"]) -> dict[str, str]:
    """Return a form as JSON has it."""
    return asdict(TextForm.of(form))


def _batches_by_length(texts: Sequence[np.ndarray], batch_size: int) -> Iterator[list[int]]:
    order = sorted(range(len(texts)), key=lambda place: (-len(texts[place]), place))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _padded(texts: Sequence[np.ndarray], pad: Any) -> tuple[torch.Tensor, torch.Tensor]:
    shape = len(texts), max(map(len, texts))
    ids, mask = torch.full(shape, int(pad), dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.from_numpy(text)
        mask[row, : len(text)] = 1
    return ids, mask
