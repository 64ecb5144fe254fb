"""What `mixln compare --then` goes on with: a step is written like the command that does it, without the model.

    --then "finetune=rows.jsonl --epochs 3 --learning-rate 3e-4"
    --then "evaluate=piqa.jsonl,boolq.jsonl --limit 500"

So a step has the options of its command, with their checks and messages. A further step is an entry in `STEPS`.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mixln.checked import Conversion
from mixln.commands.arguments import find_interface
from mixln.commands.options import Interface, with_options
from mixln.commands.parsing import parse
from mixln.commands.settings import changed
from mixln.errors import InputError
from mixln.placement.words import did_you_mean

if TYPE_CHECKING:
    from mixln.studies.steps.step import Step


@dataclass(frozen=True)
class StepKind:
    """A command that can go on with the models of a comparison.

    Attributes:
        subject: its parameter that is given behind `=`.
        decided: its parameters and fields that the comparison decides.
        maker: module and class of the step, which takes the command's other parameters.
    """

    subject: str
    decided: frozenset[str]
    maker: tuple[str, str]


_ALWAYS_DECIDED = frozenset({"out", "device", "json", "plugin"})

STEPS = {
    "finetune": StepKind(
        "data", _ALWAYS_DECIDED | {"model", "seed"}, ("mixln.studies.steps.fine_tuning_step", "FineTuningStep")
    ),
    "evaluate": StepKind(
        "tasks",
        _ALWAYS_DECIDED | {"models", "names", "device_map"},
        ("mixln.studies.steps.evaluation_step", "EvaluationStep"),
    ),
}
"""By the name of the command."""

WrittenStep = str | Mapping[str, Any]
"""`"finetune=rows.jsonl --epochs 3"`, or in Python also `{"finetune": "rows.jsonl", "epochs": 3}`."""


def read_step(step: WrittenStep) -> Callable[[], Step]:
    """Return what makes a step; its options are checked already, and what they name is when it is made.

    Raises:
        InputError: there is no such step or option, or a value is wrong.
    """
    text = written_step(step)
    try:
        kind, values, names = _read_text(step) if isinstance(step, str) else _read_mapping(step)
    except InputError as error:
        raise InputError(f"`then={text}`: {error}") from error

    def worded(message: str) -> str:
        return with_options(message, names)

    def make() -> Step:
        module, name = kind.maker
        try:
            made: Step = getattr(importlib.import_module(module), name)(text, **values)
        except InputError as error:
            raise InputError(f"`then={text}`: {worded(str(error))}") from error
        made.worded = worded
        return made

    return make


Read = tuple[StepKind, dict[str, Any], Mapping[str, str]]
"""Of a step: its kind, the arguments of its maker, and how its options are written in messages."""


def _read_text(written: str) -> Read:
    name, equals, rest = written.partition("=")
    kind = _kind(name.strip())
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise InputError(f"it cannot be read as words ({error}). Close what is quoted") from error
    first = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    subject = [one for word in words[:first] for one in word.split(",") if one]
    if not equals or not subject:
        raise InputError(f"behind the name stands what it works on: {name.strip()}={kind.subject.upper()}")
    command = _interface(name.strip(), kind)
    option = next(one for one in command.options if one.name == kind.subject)
    before = [] if option.positional else [option.spellings[0]]
    given = parse(command, [*before, *subject, *words[first:]])
    # `call` reads the values, and calls the function with them
    collected: dict[str, Any] = replace(command, function=lambda **values: values).call(given, "")
    return kind, collected, command.names()


def _read_mapping(written: Mapping[str, Any]) -> Read:
    name = next(iter(written), "")
    kind = _kind(name)
    command = _interface(name, kind)
    config, fields_of = next(iter(command.parts.items()), ("", None))
    known = {one.name for one in command.options}
    values: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for key, value in list(written.items())[1:]:
        if key not in known:
            raise InputError(
                f"there is no `{key}` to be given.{did_you_mean(key, known)} There are: {', '.join(sorted(known))}"
            )
        own = next(one for one in command.options if one.name == key)
        if own.field:
            changes[key] = value
        else:
            values[key] = Conversion().convert(own.kind, value, f"`{key}`")
    subject = written[name]
    values[kind.subject] = (
        [str(subject)]
        if not isinstance(subject, Sequence) or isinstance(subject, str)
        else [str(one) for one in subject]
    )
    if fields_of is not None:
        values[config] = changed(fields_of(), changes)
    return kind, values, {}


def _kind(name: str) -> StepKind:
    if name not in STEPS:
        raise InputError(f"there is no step {name!r}.{did_you_mean(name, STEPS)} There are: {', '.join(STEPS)}")
    return STEPS[name]


def _interface(name: str, kind: StepKind) -> Interface:
    """The command without what the comparison decides."""
    command = find_interface(name)
    options = tuple(one for one in command.options if one.name not in kind.decided)
    defaults = {name: value for name, value in command.defaults.items() if name not in kind.decided}
    return replace(command, options=options, defaults=defaults)


def written_step(step: WrittenStep) -> str:
    """Return a step as it is written on the command line."""
    if isinstance(step, str):
        return step

    def joined(value: Any) -> str:
        several = isinstance(value, Sequence) and not isinstance(value, str)
        return " ".join(shlex.quote(str(one)) for one in (value if several else [value]))

    (name, subject), *rest = step.items() or [("", "")]
    options = [f"--{key.replace('_', '-')} {joined(value)}" for key, value in rest]
    return " ".join([f"{name}={joined(subject)}", *options])
