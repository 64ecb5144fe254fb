"""The functions of the package: what they share with the commands, and what they refuse."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from pkgutil import walk_packages
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import mixln
from mixln.checked import Checked, Range
from mixln.commands import COMMANDS, find_command, is_group
from mixln.commands.fields import (
    DiagnosisFields,
    FineTuningFields,
    NormRemovalFields,
    RecipeFields,
    RewardFields,
    RLHFFields,
    RunFields,
)
from mixln.commands.settings import changed, settled_recipe
from mixln.errors import InputError
from mixln.signatures import parameter_types
from mixln.tasks.kinds import KINDS, LANGUAGE, RecipeKind
from mixln.tasks.recipe import ModelConfig, Recipe
from mixln.tasks.recipes import flat_fields
from mixln.training.config import OptimizerConfig

NAMES = {"data prepare": "prepare_data"}
"""Of functions that are not called as their command."""

FUNCTIONS = {
    name: getattr(mixln, NAMES.get(name, name.replace("-", "_")))
    for name in COMMANDS
    if not is_group(name) and name != "schemes"
}


@pytest.mark.parametrize("command", FUNCTIONS)
def test_a_command_and_the_function_of_its_name_are_one(command: str) -> None:
    assert FUNCTIONS[command] is find_command(command)
    assert FUNCTIONS[command].__name__ in ("prepare", NAMES.get(command, command.replace("-", "_")))


def lists_of(function: Callable[..., Any]) -> list[str]:
    """The parameters that take a list, and no text beside it."""
    found: list[str] = []
    for name, hint in parameter_types(function).items():
        hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        members = get_args(hint) if get_origin(hint) in (Union, type(int | str)) else (hint,)
        if any(get_origin(one) in (Sequence, Iterable) for one in members) and str not in members:
            found.append(name)
    return found


LISTS = [(name, one) for name, function in FUNCTIONS.items() for one in lists_of(function)]


@pytest.mark.parametrize(("command", "parameter"), LISTS)
def test_a_text_where_a_list_is_wanted_is_refused(command: str, parameter: str) -> None:
    function = FUNCTIONS[command]
    required = {
        name: ["nowhere"] if name in lists_of(function) else "nowhere"
        for name, one in inspect.signature(function).parameters.items()
        if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    }
    with pytest.raises(InputError, match=rf"`{parameter}` must be .*a list, not 'some'(: give \['some'\])?"):
        function(**{**required, parameter: "some"})


def test_the_lists_are_those_that_users_write_most() -> None:
    assert {"schemes", "seeds", "learning_rates", "texts", "only", "without", "tasks"} <= {name for _, name in LISTS}


def leaves(kind: Any) -> dict[str, Any]:
    """The fields of a configuration and of its parts, by their own names."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        if name in {field.name for field in fields(kind)}:
            found |= leaves(hint) if is_dataclass(hint) else {name: hint}
    return found


def keywords(kind: RecipeKind) -> dict[str, Any]:
    """The fields of recipes of a kind by their names, where a path is as good as text."""
    hidden = {"name", *(place.rpartition(".")[2] for short, place in kind.short_names.items() if short != "text_field")}
    own = leaves(kind.config)
    found = {name: hint for name, hint in own.items() if name not in hidden}
    found |= {name: own[place.rpartition(".")[2]] for name, place in kind.short_names.items()}
    return {name: found[name] for name in found}


def without_paths(hints: dict[str, Any]) -> dict[str, Any]:
    plain = {str | Path: str, str | Path | None: str | None}
    return {name: plain.get(hint, hint) for name, hint in hints.items()}


def test_the_keyword_arguments_are_the_fields_of_the_configurations() -> None:
    """Names and types, for type checkers and completion."""
    parts = {
        kind: {name: hint for name, hint in get_type_hints(kind.config).items() if is_dataclass(hint)}
        for kind in KINDS.values()
    }
    of_language = without_paths(get_type_hints(RecipeFields))
    assert of_language == keywords(LANGUAGE) | parts[LANGUAGE]
    of_all = without_paths(get_type_hints(RunFields))
    expected: dict[str, Any] = {}
    for kind in KINDS.values():
        for name, hint in (keywords(kind) | parts[kind]).items():
            expected[name] = expected[name] | hint if name in expected and expected[name] != hint else hint
        expected |= dict.fromkeys(kind.budgets, int)
    assert of_all == expected
    texts = {name for name, hint in get_type_hints(RunFields).items() if hint in (str | Path, str | Path | None)}
    assert texts == {"text", "validation_text", "tokenizer", "images"}


@pytest.mark.parametrize(
    ("shown", "config"),
    [
        (DiagnosisFields, mixln.DiagnosisConfig),
        (NormRemovalFields, mixln.NormRemovalConfig),
        (FineTuningFields, mixln.FineTuningConfig),
        (RewardFields, mixln.RewardConfig),
        (RLHFFields, mixln.RLHFConfig),
    ],
)
def test_the_keyword_arguments_of_a_config_are_its_fields(shown: Any, config: Any) -> None:
    own = {"without"} if config is mixln.DiagnosisConfig else set[str]()  # a parameter of the function
    assert get_type_hints(shown).keys() == leaves(config).keys() - own


def test_fields_are_changed_wherever_they_stand() -> None:
    recipe = settled_recipe(
        "nano",
        {
            "steps": 7,
            "hidden_size": 64,
            "learning_rate": 1e-4,
            "text": Path("books"),
            "optimizer": OptimizerConfig(name="adamw", learning_rate=1.0),
        },
    )
    assert isinstance(recipe, Recipe)
    assert (recipe.steps, recipe.model.hidden_size, recipe.data.corpus) == (7, 64, "books")
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate) == ("adamw", 1e-4)
    assert recipe.model.num_hidden_layers == ModelConfig().num_hidden_layers
    assert settled_recipe(recipe, {}) == recipe
    assert flat_fields(settled_recipe(recipe, {"data": {"max_tokens": 99}}))["data.max_tokens"] == 99
    config = changed(mixln.DiagnosisConfig(sequence_length=64), {"measures": ["removal"]})
    assert (config.sequence_length, config.measures) == (64, ("removal",))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stepps": 7}, "no field 'stepps'. Did you mean 'steps'"),
        ({"steps": -1}, "steps must be more than 0, not -1"),
        ({"batch_size": "many"}, "batch_size must be a whole number, not 'many'"),
        ({"out": 7}, "`out` must be text or a path, not 7"),
        ({"recipe": {"steps": 7}}, "`recipe` must be Recipe or ImageTrainingConfig or text or a path"),
        ({"progress": "yes"}, "`progress` must be true or false, not 'yes'"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        mixln.train(**arguments)
    assert words in str(error.value)


def configs() -> list[type[Checked]]:
    """Every class of configurations of the package."""
    for module in walk_packages(mixln.__path__, "mixln."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[Checked]] = []
    waiting = [Checked]
    while waiting:
        found += (below := waiting.pop().__subclasses__())
        waiting += below
    return [one for one in found if one.__module__.startswith("mixln.")]


CONFIGS = configs()


def valid(kind: type[Checked]) -> dict[str, Any]:
    """Arguments for the fields that have no default."""
    hints = get_type_hints(kind)
    return {field.name: plain(hints[field.name]) for field in fields(kind) if is_required(field)}


def is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def plain(hint: Any) -> Any:
    """A value that a field without a default takes."""
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    if is_dataclass(hint) and isinstance(hint, type) and issubclass(hint, Checked):
        return hint(**valid(hint))
    return {int: 2, float: 0.5, str: "pre", bool: True}[hint]


def wrong_values(hint: Any) -> list[Any]:
    """Values that are not of a type, or out of its range."""
    limits = [one for one in get_args(hint)[1:] if isinstance(one, Range)] if get_origin(hint) is Annotated else []
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    members = get_args(hint) if get_origin(hint) in (Union, type(int | str)) else (hint,)
    members = [one for one in members if one is not type(None)]
    if any(get_origin(one) is Annotated for one in members):
        limits += [limit for one in members for limit in get_args(one)[1:] if isinstance(limit, Range)]
        members = [get_args(one)[0] if get_origin(one) is Annotated else one for one in members]
    wrong: list[Any] = [object(), b"bytes"]
    for one in members:
        if one is int:
            wrong += ["a", 1.5, True, [1], float("nan")]
        elif one is float:
            wrong += ["a", True, [1.0]]
        elif one is str:
            wrong += [1, True, ["text"]]
        elif one is bool:
            wrong += [1, "yes"]
        elif get_origin(one) is tuple:
            wrong += ["text", 1, [object()]]
        elif get_origin(one) is Literal or is_dataclass(one):
            wrong += ["something else", 1, {}]
        else:
            raise AssertionError(f"no wrong value is known of {one}")
    for limit in limits:
        low = limit.low if limit.above is None else limit.above
        high = limit.high if limit.below is None else limit.below
        wrong += [low - 1] if low is not None else []
        wrong += [high + 1] if high is not None else []
        wrong += [limit.above] if limit.above is not None else []
    return wrong if type(None) in get_args(hint) else [*wrong, None]


FIELDS = [(kind, field.name) for kind in CONFIGS for field in fields(kind)]


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda one: one if isinstance(one, str) else one.__name__)
def test_a_config_refuses_wrong_values_in_its_constructor(kind: type[Checked], name: str) -> None:
    hint = get_type_hints(kind, include_extras=True)[name]
    assert kind(**valid(kind)), "it can be made"
    for value in wrong_values(hint):
        with pytest.raises(InputError, match=name.removeprefix("spike_")):
            kind(**{**valid(kind), name: value})


def test_all_configs_are_looked_at() -> None:
    assert {"Recipe", "ModelConfig", "DataConfig", "OptimizerConfig", "FaultConfig", "ExecutionConfig"} <= {
        kind.__name__ for kind in CONFIGS
    }
    assert {"DiagnosisConfig", "HealingConfig", "NormRemovalConfig", "PruningRequest", "Device"} <= {
        kind.__name__ for kind in CONFIGS
    }
