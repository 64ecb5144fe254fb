"""Rewards of completions: a model with a head of one label, or a function in a Python file."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from mixln.data.prompt_rows import Prompt
from mixln.device import default_device
from mixln.errors import InputError
from mixln.models.companions import model_folder
from mixln.models.encoding import DocumentEncoder, require_embedded
from mixln.models.finite import require_finite_parameters
from mixln.models.foreign import naming_failures
from mixln.models.load import load_config, load_tokenizer, load_whole_model
from mixln.models.model_class import in_mapping, model_class_of
from mixln.models.sampling import padded
from mixln.placement.words import did_you_mean
from mixln.plugins import first_line, line_of, read_python_file, run_python_file
from mixln.records import read_json
from mixln.sources import check_model
from mixln.tasks.fine_tuning import model_fingerprint
from mixln.tasks.reward_values import checked_rewards
from mixln.training import MODEL_FOLDER

PYTHON = "python:"
"""What a reward begins with that is a function: `python:FILE:FUNCTION`."""

REWARD_FILE = "reward.json"
"""Beside the `model/` of a reward that `mixln reward` has trained: how often it is right on held-out pairs."""


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
        except Exception as error:
            raise InputError(
                f"the reward {self.name} raises {first_line(error)}{line_of(error, self._file)}. Correct it"
            ) from error
        return self._check(values, prompts, completions)


def _as_text(prompt: Prompt) -> str:
    if prompt.messages is None:
        return prompt.text
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)


class ModelReward(Reward):
    """The number that a head for sequence classification gives to prompt and completion in its own tokens.

    A text begins as the reward's tokenizer begins one and is followed by its end-of-text token, as in the training of a
    reward, whether the completion ended or not; a conversation is written by its own chat template. The head reads the
    last token that is not padding. Texts longer than the reward's context lose their beginning.

    Args:
        source: folder, folder of a run of `mixln reward`, or name on the hub.
        batch_size: texts of a forward.

    Attributes:
        cut: texts so far that have lost their beginning.

    Raises:
        InputError: it cannot be opened, has no such head, or a weight is no number.
    """

    def __init__(self, source: str, batch_size: int = 32) -> None:
        self.name = source
        path = Path(source)
        inner = path / MODEL_FOLDER
        named = str(inner if (inner / "config.json").is_file() else source)
        check_model(named)
        folder = model_folder(named)
        config = load_config(str(folder))
        model_class = model_class_of(config, source)
        if not in_mapping(model_class, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING) or config.num_labels != 1:
            labels = "" if "SequenceClassification" not in model_class.__name__ else f" with {config.num_labels} labels"
            raise InputError(
                f"the reward {source} is a {model_class.__name__}{labels}: a reward has a head for sequence "
                f"classification of one label. Train one by `mixln reward`, or give {PYTHON}FILE:FUNCTION"
            )
        self.accuracy = read_accuracy(folder.parent / REWARD_FILE)
        self._fingerprint = model_fingerprint(folder)
        self._model: PreTrainedModel = load_whole_model(str(folder), dtype="float32", device=default_device())
        require_finite_parameters(self._model)
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(str(folder))
        self._encoder = DocumentEncoder(self._tokenizer)
        context: Any = getattr(config.get_text_config(), "max_position_embeddings", None)
        self._longest = context if isinstance(context, int) and context > 0 else None
        self._batch_size = batch_size
        self.cut = 0

    def identity(self) -> dict[str, Any]:
        """Config, weights and tokenizer."""
        tokenizer = self._tokenizer
        words = [*sorted(tokenizer.get_vocab().items()), tokenizer.chat_template, self._encoder.begin]
        return {"sha256": self._fingerprint, "tokenizer": hashlib.sha256(repr(words).encode()).hexdigest()}

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Run the model.

        Raises:
            InputError: it cannot read a text, or gives what is no number.
        """
        rows = [self._tokens(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        require_embedded({token for row in rows for token in row}, self._model, self._tokenizer)
        values = [math.nan] * len(rows)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(rows), self._batch_size):
            batch = order[start : start + self._batch_size]
            for row, value in zip(batch, self._forward([rows[row] for row in batch]), strict=True):
                values[row] = value
        return self._check(values, prompts, completions)

    def _forward(self, rows: list[list[int]]) -> list[float]:
        text_config = self._model.config.get_text_config()
        own = text_config.pad_token_id
        used = {token for row in rows for token in row}
        # without one of its own, any token that does not occur: the head finds the last one that is not padding
        pad = own if isinstance(own, int) else next(token for token in range(len(used) + 1) if token not in used)
        ids, mask = padded(rows, pad, self._model.device, left=False)
        text_config.pad_token_id = pad
        try:
            what = f"a {type(self._model).__name__} cannot score the completions"
            with torch.no_grad(), naming_failures(what, "Give another reward"):
                logits: torch.Tensor = nn.Module.__call__(self._model, input_ids=ids, attention_mask=mask).logits
        finally:
            text_config.pad_token_id = own
        return logits[:, 0].float().tolist()

    def _tokens(self, prompt: Prompt, completion: str) -> list[int]:
        text = prompt.answered(completion, self._tokenizer)
        end = [] if self._encoder.eos_token_id is None else [self._encoder.eos_token_id]
        if prompt.is_rendered:
            begin: list[int] = []
            body = list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        else:
            begin, body = list(self._encoder.begin), self._encoder.encode_bare([text])[0].tolist()
        if body[-1:] != end:
            body += end
        if not [*begin, *body]:
            raise InputError(f"the completion of the prompt {prompt.place} has no token in the reward {self.name}")
        if self._longest is not None and len(begin) + len(body) > self._longest:
            self.cut += 1
            body = body[len(begin) + len(body) - self._longest :]
        return [*begin, *body]


def read_accuracy(path: Path) -> RewardAccuracy | None:
    """Return what `mixln reward` has measured of a reward; None: there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return None
    found: Any = read_json(path)
    try:
        low, high = found["interval"]
        accuracy = RewardAccuracy(float(found["accuracy"]), (float(low), float(high)), int(found["pairs"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not say how often the reward is right (accuracy, interval, pairs): train the reward again"
        ) from error
    return accuracy
