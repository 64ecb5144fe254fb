"""Prompt templates: how the fields of a row become a prompt and its answer. They are data, written in jinja2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from mixln.errors import InputError

_FORMAT = re.compile(r"Answer format:\s*([^\s/]+(?:/[^\s/]+)+)\s*$")


@dataclass(frozen=True)
class PromptTemplate:
    """What a model reads, and what it is to answer.

    Attributes:
        name: of the template.
        prompt_template: from the fields of a row to the prompt.
        answer_template: from the fields to the answer, which follows without a space of its own.
    """

    name: str
    prompt_template: str
    answer_template: str

    def prompt(self, row: Mapping[str, Any], place: str) -> str:
        """The prompt of a row.

        Raises:
            InputError: the row lacks a field; names the place.
        """
        return self._filled(self._templates[0], row, place)

    def answer(self, row: Mapping[str, Any], place: str) -> str:
        """The answer of a row.

        Raises:
            InputError: the row lacks a field; names the place.
        """
        return self._filled(self._templates[1], row, place)

    @cached_property
    def _templates(self) -> tuple[Template, Template]:
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        try:
            return environment.from_string(self.prompt_template), environment.from_string(self.answer_template)
        except TemplateError as error:
            raise InputError(f"the prompt template {self.name} is not a jinja2 template: {error}") from error

    def _filled(self, template: Template, row: Mapping[str, Any], place: str) -> str:
        try:
            return template.render(row)
        except TemplateError as error:
            fields = ", ".join(sorted(row)) or "none"
            raise InputError(
                f"{place}: the prompt template {self.name} cannot be filled: {error}. The row has the fields: {fields}"
            ) from error


INSTRUCTION = PromptTemplate(
    "instruction",
    "Below is an instruction that describes a task"
    "{% if input is defined and input %}, paired with an input that provides further context{% endif %}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{{ instruction }}\n\n"
    "{% if input is defined and input %}### Input:\n{{ input }}\n\n{% endif %}"
    "### Response:\n",
    "{{ output }}",
)
"""That of Stanford Alpaca and LLM-Adapters (Hu et al. 2023, the commonsense rows), without the latter's indentation."""


COMPLETION = PromptTemplate("completion", "{{ prompt }}", "{{ completion }}")
"""A prompt and what follows it, as they are."""

TEMPLATES = {template.name: template for template in (INSTRUCTION, COMPLETION)}
"""The templates that ship, by their names."""


def load_template(name_or_path: str) -> PromptTemplate:
    """Return a template that ships, or one from a YAML file with a `prompt` and an `answer`.

    Raises:
        InputError: there is none of that name, or the file is none.
    """
    if name_or_path in TEMPLATES:
        return TEMPLATES[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"there is no prompt template {name_or_path!r}. There are {', '.join(TEMPLATES)}; or give a YAML file with "
            "a prompt and an answer, each a jinja2 template"
        )
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if (
        not isinstance(found, dict)
        or set(found) != {"prompt", "answer"}
        or not all(isinstance(one, str) for one in found.values())
    ):
        raise InputError(f"{path} must have a prompt and an answer, each a text, and nothing else")
    return PromptTemplate(path.name, found["prompt"], found["answer"])


def answer_options(instruction: str) -> list[str] | None:
    """The options `a`, `b` of an instruction that ends with `Answer format: a/b`; None: it does not."""
    found = _FORMAT.search(instruction)
    return None if found is None else found[1].split("/")
