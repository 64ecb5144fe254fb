"""What a step after a comparison is: all runs go through it with the same settings, and each with its own seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from mixln.errors import InputError
from mixln.report.step_results import StepResult


@dataclass(frozen=True)
class ModelsToCome:
    """What is known of the models before they are trained, since all runs have it in common.

    Attributes:
        tokenizer: of the models; a step may change its copy.
        config: of one of them.
        build: returns one with its initial weights.
    """

    tokenizer: PreTrainedTokenizerFast
    config: PreTrainedConfig
    build: Callable[[], nn.Module]


@dataclass(frozen=True)
class ChosenRun:
    """A run whose model goes through the steps.

    Attributes:
        name: of its folder.
        placement: its scheme.
        seed: of the run, and of what is done with its model.
        learning_rate: that it was trained at.
        model: folder of its model; None: there is none to go on with.
        remark: what is the matter with it; empty: nothing.
    """

    name: str
    placement: str
    seed: int
    learning_rate: float
    model: Path | None
    remark: str = ""


@dataclass(frozen=True)
class StepPlace:
    """Where and under which name a step runs.

    Attributes:
        folder: of the step: what it writes is its own.
        kept: folder for what steps of one kind may share.
        out: folder of the comparison, that links are relative to.
        baseline: the placement that differences are taken to; None: there is none.
        command: the command line, for reports.
        shown: whether to show on standard error how far it is.
    """

    folder: Path
    kept: Path
    out: Path
    baseline: str | None
    command: str
    shown: bool


class Step(ABC):
    """A step. Its constructor checks what can be checked without a model.

    Attributes:
        name: what it is called, such as `finetune`.
        makes_models: whether later steps go on with other models than this one had.
        written: as it was asked for.
        worded: returns a message with the parameters in it written as whoever asked for the step writes them.
    """

    name: ClassVar[str]
    makes_models: ClassVar[bool]
    written: str
    worded: Callable[[str], str] = staticmethod(lambda message: message)

    @abstractmethod
    def prepare(self, models: ModelsToCome) -> ModelsToCome:
        """Read and check all that the step needs, before any model is trained.

        Args:
            models: as they will be when the step begins.

        Returns:
            The models as they will be after it.

        Raises:
            InputError: the step could not be done.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return all that decides what the step does with a model, but for the seed; known after `prepare`."""

    @abstractmethod
    def run(self, runs: Sequence[ChosenRun], place: StepPlace) -> tuple[StepResult, list[ChosenRun]]:
        """Do the step with all runs; what is finished already is not done again.

        Args:
            runs: of the comparison. Those without a model are passed on as they are.
            place: where.

        Returns:
            The result, and the runs with the models that the next step goes on with.

        Raises:
            InputError: the step cannot be done.
        """


@contextmanager
def naming(step: Step) -> Iterator[None]:
    """Say of an error inside the block which step it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"`then={step.written}`: {step.worded(str(error))}") from error
