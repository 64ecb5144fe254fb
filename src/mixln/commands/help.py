"""What `--help` and `--help-all` print."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from mixln.commands.options import Interface, Option, choices, with_options

FIRST: dict[str, dict[str, list[str]]] = {
    "train": {
        "What is trained": ["--recipe", "--placement", "--architecture", "--text", "--images"],
        "How": ["--steps", "--tokens", "--batch-size", "--sequence-length", "--learning-rate", "--precision"],
        "Where": ["--device", "--out"],
    },
    "compare": {
        "What is compared": ["--schemes", "--seeds", "--learning-rates", "--baseline", "--then"],
        "What is trained": ["--recipe", "--text", "--images"],
        "How": ["--steps", "--tokens", "--batch-size"],
        "Where": ["--device", "--out"],
    },
    "data prepare": {
        "What is prepared": ["--recipe", "--text", "--validation-text", "--text-field"],
        "How": ["--tokenizer", "--data.vocab-size", "--data.max-tokens", "--sequence-length", "--workers"],
        "Where": ["--out", "--cache"],
    },
    "estimate": {
        "What is estimated": ["--recipe", "--placement", "--architecture", "--steps", "--tokens", "--batch-size"],
        "On what": ["--device", "--count", "--price", "--utilization", "--json"],
    },
    "diagnose": {
        "What is measured": ["models", "--only", "--without", "--tasks"],
        "On what": ["--text", "--max-tokens", "--performance-tokens", "--images", "--batch-size"],
        "Where": ["--precision", "--device", "--out"],
    },
    "finetune": {
        "What is trained": ["model", "data", "--validation-data", "--template", "--too-long"],
        "How": ["--epochs", "--batch-size", "--sequence-length", "--learning-rate", "--method"],
        "Where": ["--device", "--out"],
    },
    "reward": {
        "What is trained": ["model", "preferences", "--validation-data", "--template", "--too-long", "--unusable"],
        "How": ["--epochs", "--batch-size", "--sequence-length", "--learning-rate"],
        "Where": ["--device", "--out"],
    },
    "rlhf": {
        "What is trained": ["models", "prompts", "--reward", "--judge"],
        "How": ["--steps", "--prompts-per-step", "--max-new-tokens", "--learning-rate", "--beta", "--method"],
        "Where": ["--device", "--out"],
    },
    "reproduce": {
        "What is made": ["names", "--scale", "--text", "--validation-text", "--images"],
        "What else can be had": ["--list", "--plan", "--stop-after", "--report", "--json"],
        "Where": ["--device", "--out"],
    },
    "evaluate": {
        "What is evaluated": ["models", "--names", "--tasks", "--task-path", "--limit"],
        "How": ["--num-fewshot", "--apply-chat-template", "--batch-size"],
        "Where": ["--precision", "--device", "--out"],
    },
    "prune": {
        "What is removed": ["model", "out", "--layers", "--drop", "--by"],
        "What it is measured on": ["--text", "--max-tokens", "--sequence-length", "--images"],
        "Training what is left": ["--heal", "--healing.tokens", "--healing.method"],
        "Where": ["--device"],
    },
    "remove-norm": {
        "What is trained": ["model", "out", "--text"],
        "How": ["--schedule", "--steps", "--batch-size", "--sequence-length", "--learning-rate"],
        "What is compared": ["--no-control", "--max-validation-tokens"],
        "Where": ["--device"],
    },
}
"""The options that people use first, by command and heading: what `--help` shows. Other commands show all of theirs."""

_WIDEST = 100
_COLUMN = 32
"""Where the text on an option begins at most; if its name is longer, the text stands below it."""

_SENTENCE = re.compile(r"(?<=[a-z0-9)`]\.) (?=[A-Z])")


def width() -> int:
    """Return how many characters a line of help may have."""
    return max(60, min(_WIDEST, shutil.get_terminal_size().columns))


def help_page(command: Interface, *, everything: bool, columns: int | None = None) -> str:
    """Return the help of a command.

    Args:
        command: whose.
        everything: all options; else those that people use first.
        columns: characters of a line; None: as the terminal has, 100 at most.
    """
    columns = columns or width()
    shown = [option for option in command.options if option.positional]
    usage = " ".join(option.spellings[0].upper() + " ..." * option.is_list for option in shown if option.required)
    usage = usage + "".join(f" [{option.spellings[0].upper()}]" for option in shown if not option.required)
    lines = [f"usage: mixln {command.name} {usage} [OPTIONS]".replace("  ", " "), ""]
    summary = command.description if everything else _SENTENCE.split(command.description)[0]
    lines += [*textwrap.wrap(summary, columns), ""]
    groups, names = list(_groups(command, everything)), command.names()
    column = min(_COLUMN, 4 + max(len(_label(option)) for _, options in groups for option in options))
    for heading, options in groups:
        lines.append(f"{heading}:")
        lines += [line for option in options for line in _entry(option, names, column, columns, everything)]
        lines += [""] * everything
    if not everything:
        lines.append("")
        lines.append(f"All options, in more words: mixln {command.name} --help-all")
    for example in command.examples:
        lines += _example(example, columns)
    return "\n".join(lines) + "\n"


def _example(line: str, columns: int) -> list[str]:
    """Return a command in lines that a shell reads as one."""
    parts = textwrap.wrap(line, columns - len("example:  \\"), break_long_words=False, break_on_hyphens=False)
    marks = [*[" \\"] * (len(parts) - 1), ""]
    starts = ["example: ", *[" " * 11] * (len(parts) - 1)]
    return [f"{start}{part}{mark}" for start, part, mark in zip(starts, parts, marks, strict=True)]


def _groups(command: Interface, everything: bool) -> Iterator[tuple[str, list[Option]]]:
    by_name = {option.spellings[0]: option for option in command.options}
    left = dict.fromkeys(command.options)
    for heading, names in FIRST.get(command.name, {}).items():
        options = [by_name[name] for name in names]
        yield heading, options
        for option in options:
            del left[option]
    if command.name not in FIRST or everything:
        groups: dict[str, list[Option]] = {}
        for option in left:
            heading = option.group or ("Arguments" if option.positional else "Options")
            groups.setdefault(heading, []).append(option)
        yield from groups.items()


def _label(option: Option) -> str:
    if option.positional:
        return option.spellings[0].upper()
    short = [spelling for spelling in option.spellings[1:] if len(spelling) < 6]  # --lr
    value = f"[{option.metavar}]" if option.const is not None else option.metavar
    return " ".join([*(f"{spelling}," for spelling in short), option.spellings[0], value]).rstrip()


def _entry(option: Option, names: Mapping[str, str], column: int, columns: int, everything: bool) -> list[str]:
    label, text = _label(option), with_options(describe(option, everything=everything), names)
    text = textwrap.wrap(text, columns - column)
    if len(label) + 4 > column:
        return [f"  {label}", *(" " * column + line for line in text)]
    return [f"  {label:{column - 2}}{text[0]}", *(" " * column + line for line in text[1:])]


def describe(option: Option, *, everything: bool = True) -> str:
    """Return what an option is, in sentences: with the words that it takes, and its default.

    With `everything` false it is the first sentence, and the default.
    """
    sentences = _SENTENCE.split(" ".join(option.help.split()))
    stated = [one for one in sentences if one.startswith("Default:")]
    others = [one for one in sentences if one not in stated]
    text = " ".join(others if everything else others[:1])
    text = f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."
    words = choices(option.kind)
    if words and not all(word in text for word in words):
        text += f" One of {', '.join(words)}."
    default = "" if option.required else _default(option.default)
    return " ".join([text, *(stated or ([f"Default: {default}."] if default else []))])


def _default(value: Any) -> str:
    if value is None or value is False or is_dataclass(value):
        return ""
    if value is True:
        return "true"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(_default, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def overview_page(commands: Mapping[str, str]) -> str:
    """Return the help of the whole command line: what each command is for."""
    groups = {name.partition(" ")[0] for name in commands if " " in name}
    shown = {name: text for name, text in commands.items() if name not in groups}
    return "\n".join(
        [
            "usage: mixln COMMAND [OPTIONS]",
            "",
            "Train, compare and open transformers under any placement of layer normalisation.",
            "",
            "Commands:",
            *_table(shown),
            "",
            "Options:",
            *_table(
                {
                    "COMMAND --help": "the options of a command that people use first",
                    "COMMAND --help-all": "all options of a command",
                    "--version": "the version of mixln",
                    "--completion SHELL": "a script that completes commands and options in bash, zsh or fish",
                }
            ),
            "",
            "example: mixln compare --schemes pre mix --seeds 0 1 2 --out runs/compare",
            "",
        ]
    )


def group_page(name: str, summary: str, members: Mapping[str, str]) -> str:
    """Return the help of a group of commands."""
    lines = [f"usage: mixln {name} COMMAND [OPTIONS]", "", f"{summary[0].upper()}{summary[1:]}.", "", "Commands:"]
    first = next(iter(members))
    return "\n".join([*lines, *_table(members), "", f"example: mixln {name} {first} --help", ""])


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    widest = max(map(len, rows)) + 4
    for name, text in rows.items():
        wrapped = textwrap.wrap(f"{text[0].upper()}{text[1:]}.", width() - widest)
        yield f"  {name:{widest - 2}}{wrapped[0]}"
        yield from (" " * widest + line for line in wrapped[1:])
