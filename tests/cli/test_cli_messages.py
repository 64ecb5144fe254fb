"""Errors that name a parameter name one that the running command has, so that it is shown as an option."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import mixln
from mixln.commands import COMMANDS, find_command, is_group
from mixln.commands.arguments import find_interface

ROOT = Path(mixln.__file__).parents[1]

OWN_MODELS = "the blocks of this library's models are declared; `prune --heal` has measured the model before"
EXCHANGE = "`remove-norm` takes from `mixln.exchange` what writes a folder with its code, alone"

NOT_RAISED = {
    **dict.fromkeys(
        [
            ("mixln.data.example_data", "sequence_length"),
            ("mixln.data.example_data", "weights"),
            ("mixln.data.preferences", "sequence_length"),
            ("mixln.data.preferences", "unusable"),
            ("mixln.data.preferences", "validation_data"),
            ("mixln.measure.texts", "sequence_length"),
        ],
        "`rlhf` reads rows, writes answers, asks for the longest window and names models, and does no more by these",
    ),
    ("mixln.commands.start", "task_path"): "raised where tasks are announced, by `evaluate` and `diagnose`",
    ("mixln.data.corpus", "text_field"): "`export` opens a run, and reads no text",
    (
        "mixln.data.tokenizer",
        "tokenizer",
    ): "the others give that of a model: the first fix is theirs",
    ("mixln.device", "device"): "raised for the `device` that was given",
    **dict.fromkeys(
        [("mixln.evaluation.harness", name) for name in ("apply_chat_template", "fewshot_as_multiturn", "num_fewshot")],
        "`diagnose` prompts as the task says",
    ),
    **dict.fromkeys(
        [("mixln.estimation.run", name) for name in ("count", "price", "utilization")],
        "`reproduce` plans for one device, as it usually is",
    ),
    ("mixln.evaluation.local_tasks", "query"): "a field of a file of items",
    ("mixln.exchange.export", "placement"): EXCHANGE,
    ("mixln.exchange.published", "norm_type"): EXCHANGE,
    ("mixln.exchange.published", "placement"): EXCHANGE,
    ("mixln.exchange.published", "post_num"): EXCHANGE,
    ("mixln.measure.calls", "stack"): OWN_MODELS,
    ("mixln.measure.observation", "stack"): OWN_MODELS,
    ("mixln.measure.recording", "stack"): OWN_MODELS,
    ("mixln.models.anatomy", "stack"): OWN_MODELS,
    ("mixln.models.encoding", "tokenizer"): "raised for one that is given in Python",
    ("mixln.models.load_images", "image_processor"): "raised for one that is given in Python",
    ("mixln.models.load", "device_map"): "raised for the `device_map` that was given",
    ("mixln.placement.norms", "norm_factory"): "a function, for blocks that are made in Python",
    ("mixln.studies.compare", "learning_rate_of"): "`reproduce` gives each run its one rate",
    ("mixln.studies.diagnosis_config", "fresh_gradients"): "the others choose their measures themselves",
    ("mixln.studies.reproduce.specification", "does_not_learn"): "a field of a table's file",
    ("mixln.studies.reproduce.specification", "lower"): "a field of a table's file",
    **dict.fromkeys(
        [("mixln.tasks.healing_config", name) for name in ("method", "rank")],
        "`reward` and `remove-norm` train no low-rank updates",
    ),
    ("mixln.tasks.recipes", "recipe"): "raised for the `recipe` that was given",
}
"""By module and parameter: why commands that import the module, but lack the parameter, do not raise that error."""


def trees() -> dict[str, ast.Module]:
    """The modules of the library."""
    found: dict[str, ast.Module] = {}
    for path in sorted(ROOT.glob("mixln/**/*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """The modules that each imports, at its top or in a function; of a name of a package, the module that has it."""
    lines = {
        name: [line for line in ast.walk(tree) if isinstance(line, ast.ImportFrom)] for name, tree in modules.items()
    }
    origin = {
        (name, alias.asname or alias.name): str(line.module)
        for name, own in lines.items()
        for line in own
        for alias in line.names
    }

    def of(module: str, name: str) -> str:
        if f"{module}.{name}" in modules:
            return f"{module}.{name}"
        return origin.get((module, name), module)

    return {
        name: {of(str(line.module), alias.name) for line in own for alias in line.names} & modules.keys()
        for name, own in lines.items()
    }


def reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    found, waiting = set[str](), [start]
    while waiting:
        if (module := waiting.pop()) not in found:
            found.add(module)
            waiting += graph[module]
    return found


def named_parameters(tree: ast.Module) -> Iterator[str]:
    """The parameters that errors of a module name, as `name` or `name=value`."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Raise) and statement.exc is not None:
            for node in ast.walk(statement.exc):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
                yield from (match[1] for match in re.finditer(r"`(\w+)(?:=[^`]*)?`", text))


def test_errors_name_parameters_that_the_running_command_has() -> None:
    """As far as can be told without running them: of all modules that a command imports."""
    modules = trees()
    graph = imports(modules)
    named = {module: set(named_parameters(tree)) for module, tree in modules.items()}
    lacking: set[tuple[str, str]] = set()
    for command in COMMANDS:
        if not is_group(command):
            names = find_interface(command).names()
            names |= dict.fromkeys(inspect.signature(find_command(command)).parameters, "")  # those of Python alone too
            for module in reached(find_command(command).__module__, graph):
                lacking |= {(module, name) for name in named[module] - names.keys()}
    assert sorted(lacking) == sorted(NOT_RAISED)


def test_a_field_of_a_config_is_named_by_its_option() -> None:
    options = find_interface("train").names()
    assert options["vocab_size"] == options["data.vocab_size"] == "--data.vocab-size"
    assert options["text_field"] == options["data.text_field"] == "--text-field"
    assert options["corpus"] == "--text"
