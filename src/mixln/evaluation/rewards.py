"""Rewards of completions: a model with a head of one label, or a function in a Python file."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mixln.data.prompt_rows import Prompt
from mixln.device import default_device
from mixln.errors import InputError
from mixln.measure.texts import longest_window
from mixln.models.companions import model_folder
from mixln.models.encoding import DocumentEncoder, require_embedded
from mixln.models.finite import require_finite_parameters
from mixln.models.foreign import naming_failures
from mixln.placement.words import did_you_mean
from mixln.plugins import first_line, line_of, read_python_file, run_python_file
from mixln.records import read_json
from mixln.sources import check_model
from mixln.tasks.fine_tuning import model_fingerprint
from mixln.tasks.reward_model import REPORT_FILE, form_record, load_reward_model
from mixln.tasks.reward_values import checked_rewards
from mixln.training import MODEL_FOLDER

PYTHON = "python:"
"""What a reward begins with that is a function: `python:FILE:FUNCTION`."""

_WITHOUT_LIMIT = 10**9


@dataclass(frozen=True)
class RewardAccuracy:
    """How often a reward model prefers what people (or a judge) preferred, on pairs that it was not trained on.

    Attributes:
        share: of the pairs.
        interval: of 95 %.
        pairs: how many.
    """

    share: float
    interval: tuple[float, float]
    pairs: int

    @property
    def is_above_chance(self) -> bool:
        """Whether it can be told from a coin, and is better."""
        return self.interval[0] > 0.5

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} [{low:.1%}, {high:.1%}] of {self.pairs:,} held-out pairs"


class Reward(ABC):
    """Gives a number to a prompt and its completion: the higher, the better.

    Attributes:
        name: as the user has written it.
        accuracy: on held-out pairs, if it is known.
    """

    name: str
    accuracy: RewardAccuracy | None = None

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that the rewards depend on, as JSON: equal rewards give equal numbers, wherever they lie."""

    @abstractmethod
    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return a finite number for each prompt with its completion.

        Raises:
            InputError: there is none for one of them; the message names it.
        """

    def require_above_chance(self, *, force: bool, what: str = "reward") -> None:
        """Make sure that the reward says something, as far as is known.

        Args:
            force: it need not.
            what: it is used as, for the message.

        Raises:
            InputError: it cannot be told from a coin.
        """
        if self.accuracy is None or self.accuracy.is_above_chance or force:
            return
        raise InputError(
            f"the {what} {self.name} prefers the preferred answer in {self.accuracy}, which cannot be told from a coin "
            "(50 %) or is below it: a policy would learn noise. Train a better reward, or use it all the same by "
            "`force`"
        )

    def _check(self, values: Any, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        def describe(number: int) -> str:
            text = completions[number]
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            return f"the completion {shown!r} of the prompt {prompts[number].place}"

        return checked_rewards(values, len(completions), f"the reward {self.name}", describe)


def open_reward(source: str, *, batch_size: int = 32) -> Reward:
    """Return a reward.

    Args:
        source: `python:FILE:FUNCTION`; or a folder with a head for sequence classification of one label, the folder of
            a run of `mixln reward`, or a name on the hub.
        batch_size: completions that a model scores together.

    Raises:
        InputError: there is no such reward.
    """
    if source.startswith(PYTHON):
        return FunctionReward(source)
    return ModelReward(source, batch_size)


class FunctionReward(Reward):
    """A function of (prompts, completions), both lists of texts, that returns a list of numbers.

    The prompt of a conversation is its messages, one a line, as `role: content`.

    Args:
        source: `python:FILE:FUNCTION`.

    Raises:
        InputError: there is no such file, or no such function in it.
    """

    def __init__(self, source: str) -> None:
        self.name = source
        path, _, function = source.removeprefix(PYTHON).rpartition(":")
        if not path or not function:
            raise InputError(
                f"the reward {source} must be {PYTHON}FILE:FUNCTION, such as {PYTHON}rewards.py:share_of_e"
            )
        where = f"the reward {source}"
        self._file, content = read_python_file(path, where, "Give the file that the function is in")
        self._digest, self._function = hashlib.sha256(content).hexdigest(), function
        module = run_python_file(self._file, f"mixln_reward_{self._digest[:16]}", where)
        found = getattr(module, function, None)
        if not callable(found):
            there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            problem = "is no function" if hasattr(module, function) else "does not exist"
            raise InputError(
                f"{where}: {function} {problem} in {path}.{did_you_mean(function, there)} There are: "
                f"{', '.join(sorted(there)) or 'no functions'}"
            )
        self._call: Callable[..., Any] = found

    def identity(self) -> dict[str, Any]:
        """The file's content and the name of the function."""
        return {"function": self._function, "sha256": self._digest}

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Call the function.

        Raises:
            InputError: it raises an error, or what it returns is not a list of so many finite numbers.
        """
        try:
            values = self._call([_as_text(prompt) for prompt in prompts], list(completions))
        except (Exception, SystemExit) as error:  # a function that leaves would end the command without a word
            raise InputError(
                f"the reward {self.name} raises {first_line(error)}{line_of(error, self._file)}. Correct it"
            ) from error
        return self._check(values, prompts, completions)


def _as_text(prompt: Prompt) -> str:
    if prompt.messages is None:
        return prompt.text
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)


class ModelReward(Reward):
    """The number that a reward model gives to prompt and completion, in the form and the tokens of its training.

    The end token stands behind each completion, whether it ended or not. Texts longer than the model's context lose
    their beginning.

    Args:
        source: folder of a run of `mixln reward`, the model in it, any other with one score, or name on the hub.
        batch_size: texts of a forward.

    Attributes:
        cut: texts so far that have lost their beginning.

    Raises:
        InputError: it cannot be opened, is no reward model, or a weight is no number.
    """

    def __init__(self, source: str, batch_size: int = 32) -> None:
        self.name = source
        inner = Path(source) / MODEL_FOLDER
        named = str(inner if (inner / "config.json").is_file() else source)
        check_model(named)
        folder = model_folder(named)
        self._judge = load_reward_model(folder)
        require_finite_parameters(self._judge.model)
        nn.Module.to(self._judge.model, default_device())
        self.accuracy = read_accuracy(folder) or read_accuracy(folder.parent)
        self._fingerprint = model_fingerprint(folder)
        config = self._judge.model.config.get_text_config()
        self._longest = longest_window(self._judge.tokenizer, config, _WITHOUT_LIMIT)
        self._batch_size = batch_size
        self.cut = 0

    def identity(self) -> dict[str, Any]:
        """Config, weights, tokenizer and form."""
        tokenizer = self._judge.tokenizer
        words = [*sorted(tokenizer.get_vocab().items()), tokenizer.chat_template, DocumentEncoder(tokenizer).begin]
        digest = hashlib.sha256(repr(words).encode()).hexdigest()
        return {"sha256": self._fingerprint, "tokenizer": digest, "form": form_record(self._judge.form)}

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Run the model.

        Raises:
            InputError: it cannot read a text, or gives what is no number.
        """
        values, places = [prompt.value for prompt in prompts], [prompt.place for prompt in prompts]
        texts, cut = self._judge.encode(values, completions, places, self._longest)
        self.cut += cut
        require_embedded({token for text in texts for token in text.tolist()}, self._judge.model, self._judge.tokenizer)
        with naming_failures(f"the reward {self.name} cannot score the completions", "Give another reward"):
            rewards = self._judge.rewards_of(texts, batch_size=self._batch_size)
        return self._check(rewards, prompts, completions)


def read_accuracy(folder: Path) -> RewardAccuracy | None:
    """Return what `mixln reward` has measured of the reward model in a folder; None: there is no report.

    Raises:
        InputError: the report is damaged.
    """
    path = folder / REPORT_FILE
    if not path.is_file():
        return None
    found: Any = read_json(path)
    try:
        low, high = found["interval"]
        return RewardAccuracy(float(found["accuracy"]), (float(low), float(high)), int(found["pairs"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not say how often the reward is right (accuracy, interval, pairs): train the reward again"
        ) from error
