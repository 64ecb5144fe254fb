"""What the packages offer: paths may be text, a text is no list, and layers say where counting begins."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, cast

import pytest
from docstring_parser.google import parse
from torch import nn
from transformers import PreTrainedTokenizerBase

import mixln
from mixln.data import train_tokenizer
from mixln.errors import InputError
from mixln.measure.texts import longest_window, text_windows
from mixln.models.encoding import DocumentEncoder, PromptEncoder
from mixln.studies.compare import compare, plan_jobs
from mixln.studies.diagnose import diagnose_model
from mixln.tasks.recipe import Recipe

STUDIES = [f"mixln.studies.{name}" for name in ("compare", "diagnose", "prune", "pruned_folder", "remove_norm")]
PACKAGES = ["mixln", *(one.name for one in walk_packages(mixln.__path__, "mixln.") if one.ispkg), *STUDIES]

CALLED_BY_THE_ENGINE = {
    *(f"{task}.{method}" for task in ("Task", "ImageClassification") for method in ("describe", "save", "load")),
    *("TrainedModel.__init__", "Job.__init__"),
}
"""What is handed to them is a path already."""


def public(package: str) -> Iterator[tuple[str, Any]]:
    """The names that a package offers."""
    module = importlib.import_module(package)
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == package
    ]
    yield from ((name, getattr(module, name)) for name in names)


def functions() -> dict[str, Callable[..., Any]]:
    """All functions that the packages offer, and the methods of their classes."""
    found: dict[str, Callable[..., Any]] = {}
    for package in PACKAGES:
        for name, value in public(package):
            if inspect.isfunction(value):
                found[name] = value
            elif inspect.isclass(value) and value.__module__.startswith("mixln"):
                found |= {
                    f"{name}.{one}": method
                    for one, method in vars(value).items()
                    if inspect.isfunction(method) and (one == "__init__" or not one.startswith("_"))
                }
    return found


FUNCTIONS = functions()


def test_paths_may_be_text_wherever_one_is_taken() -> None:
    assert len(FUNCTIONS) > 200
    lacking = {
        f"{name}({parameter.name})"
        for name, function in FUNCTIONS.items()
        for parameter in inspect.signature(function).parameters.values()
        if re.search(r"\bPath\b", str(parameter.annotation)) and not re.search(r"\bstr\b", str(parameter.annotation))
        if name not in CALLED_BY_THE_ENGINE
    }
    assert lacking == set()


def test_layers_say_where_counting_begins() -> None:
    """A layer counts from 1, an index from 0, and the text of a parameter says so."""
    silent: set[str] = set()
    for name, function in FUNCTIONS.items():
        numbers = {
            one.name: "from 1" if "layer" in one.name else "from 0"
            for one in inspect.signature(function).parameters.values()
            if re.fullmatch(r"(\w+_)?layers?|ind(ex|ices)|removed|kept", one.name)
            and "num_" not in one.name
            and re.search(r"\bint\b", str(one.annotation))
        }
        owner = name.rpartition(".")[0]
        documented = function.__doc__ if not name.endswith("__init__") else class_text(owner)
        texts = {one.arg_name: one.description or "" for one in parse(documented or "").params}
        silent |= {f"{name}({one})" for one, words in numbers.items() if words not in texts.get(one, documented or "")}
    assert silent == {"ModelShape.__init__(layers)"}, "which is a number of layers"


def class_text(name: str) -> str:
    for package in PACKAGES:
        for one, value in public(package):
            if one == name:
                return "\n".join(base.__doc__ or "" for base in value.__mro__ if base.__module__.startswith("mixln"))
    raise AssertionError(name)


# never run: what is wrong with the arguments is said before
MODEL = nn.Linear(1, 1)
TOKENIZER = PreTrainedTokenizerBase()

NOT_A_LIST: dict[str, Callable[[Any], object]] = {
    "documents": lambda text: train_tokenizer(text, 300),
    "texts": lambda text: diagnose_model(MODEL, TOKENIZER, text),
    "texts of windows": lambda text: text_windows(TOKENIZER, text, 8, 8, 8, special_tokens=False),
    "schemes": lambda text: plan_jobs(Recipe(), text, "", "nowhere", [0], None),
    "seeds": lambda text: plan_jobs(Recipe(), ["pre"], "", Path("nowhere"), text, None),
    "schemes of a comparison": lambda text: compare(Recipe(), text, cast("Any", None), "nowhere"),
}


@pytest.mark.parametrize("what", NOT_A_LIST)
def test_a_text_is_no_list(what: str) -> None:
    with pytest.raises(InputError, match=rf"`{what.split()[0]}` must be a list, not 'pre': give \['pre'\]"):
        NOT_A_LIST[what]("pre")


@pytest.mark.parametrize("tokenizer", [None, "gpt2", object()])
@pytest.mark.parametrize("use", [DocumentEncoder, PromptEncoder, lambda one: longest_window(one, None, 8)])
def test_what_is_no_tokenizer_is_refused(use: Callable[[Any], object], tokenizer: object) -> None:
    with pytest.raises(InputError, match=r"`tokenizer` is .*: give the model's own"):
        use(tokenizer)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: mixln.diagnose(model), "`tokenizer` is missing"),
        (lambda model: mixln.diagnose(model, cast("Any", object())), "`tokenizer` is a object"),
        (lambda _: mixln.diagnose([]), "`models` is empty"),
        (lambda model: mixln.diagnose([model, cast("Any", 5)]), "must be text or a path or an object, not 5"),
        (lambda model: mixln.diagnose([cast("Any", object())], model), "`tokenizer` is a MixLNLlamaForCausalLM"),
        (lambda model: mixln.prune(model, "out", layers=[1]), "`tokenizer` is missing"),
        (lambda _: mixln.prune(cast("Any", object()), "out", layers=[1]), "a model of transformers, not a object"),
        (lambda model: mixln.remove_norm(model, "out", tokenizer=cast("Any", "gpt2")), "`tokenizer`"),
    ],
)
def test_models_in_memory_need_their_tokenizer(
    call: Callable[[Any], object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = mixln.MixLNLlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    with pytest.raises(InputError) as error:
        call(mixln.MixLNLlamaForCausalLM(config))
    assert words in str(error.value)
    assert not any(tmp_path.iterdir())
