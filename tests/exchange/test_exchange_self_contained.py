"""Folders with the code of their model: opened where mixln is not installed."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_tools import NAMES, tiny_architecture, tiny_architecture_config
from models_tools import logits_of, tiny_model, token_ids
from self_contained import open_without_mixln, write_case
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import mixln
from mixln import MixLNLlamaConfig, MixLNLlamaForCausalLM
from mixln.errors import InputError
from mixln.exchange import save_self_contained
from mixln.exchange.self_contained import modelling_file
from mixln.exchange.source_bundle import BundleError, bundle
from mixln.models import ARCHITECTURES
from mixln.placement.registry import SCHEMES

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")

OF_LLAMA = [
    *mixln.schemes(),
    *(f"pre+{modifier}" for modifier in mixln.modifiers()),
    *("mix(post_layers=3)+scaled_init+gpas", "deepnorm(residual_scale=1.5)", "hybrid(first_pre=true)+derf"),
]
QUICK = [("llama", "lns"), ("llama", "hybrid"), ("gpt2", "mix")]
THOROUGH = dict.fromkeys(
    [*(("llama", text) for text in OF_LLAMA), *((name, text) for name in NAMES for text in ("pre", "mix"))]
)

SCHEME_OF_A_USER = '''"""A scheme of somebody's own, in a module of their own."""

from __future__ import annotations

from typing import Annotated

from mixln import register_scheme
from mixln.placement import NORM, BlockPlan, Interval, SublayerPlan

FACTOR = 0.5


def bypassed(factor: float) -> SublayerPlan:
    return SublayerPlan(output_norm=NORM, bypass=FACTOR * factor)


@register_scheme("theirs", embedding_norm=NORM)
def theirs(depth: int, num_layers: int, *, factor: Annotated[float, Interval(0, 1)] = 1.0) -> BlockPlan:
    return BlockPlan(SublayerPlan(output_norm=NORM), bypassed(factor))
'''


@pytest.fixture
def scheme_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from _registered("theirs", SCHEME_OF_A_USER, tmp_path, monkeypatch)


def _registered(name: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (folder / "schemes_of_theirs.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    __import__("schemes_of_theirs")
    yield name
    del SCHEMES[name], sys.modules["schemes_of_theirs"]


@pytest.mark.slow
def test_folders_are_opened_without_mixln(scheme_of_a_user: str, tmp_path: Path) -> None:
    """Logits and stack are equal bit for bit, and so are generated text, drawn weights and what is saved again."""
    for name, text in QUICK:
        write_case(tmp_path / "cases" / f"{name}-{text}", tiny_architecture(name, text), without=scheme_of_a_user)
    write_case(tmp_path / "cases" / "theirs", tiny_architecture("llama", f"{scheme_of_a_user}(factor=0.5)"))
    # a user's own scheme comes along, with what it uses
    assert "FACTOR = 0.5" in (tmp_path / "cases" / "theirs" / "model" / "modeling_mixln_llama.py").read_text()
    faults = open_without_mixln(tmp_path / "cases", tmp_path / "work")
    assert len(faults) == 4
    assert not any(faults.values()), "\n".join(faults.values())


@pytest.mark.slow
def test_every_placement_and_architecture_is_opened_without_mixln(tmp_path: Path) -> None:
    for number, (name, text) in enumerate(THOROUGH):
        write_case(tmp_path / "cases" / f"{number:03}-{name}-{text}", tiny_architecture(name, text))
    faults = open_without_mixln(tmp_path / "cases", tmp_path / "work")
    assert len(faults) == len(THOROUGH)
    assert not any(faults.values()), "\n".join(faults.values())


def test_a_users_scheme_is_left_out_of_other_placements(scheme_of_a_user: str) -> None:
    assert scheme_of_a_user not in modelling_file(MixLNLlamaConfig(placement="mix")).text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("from typing import", "import numpy\nfrom typing import"), None),
        (("FACTOR = 0.5", "import numpy\nFACTOR = numpy.float64(0.5)"), "imports numpy"),
        (("FACTOR = 0.5", "import mixln\nFACTOR = len(mixln.schemes()) / 100"), "uses the module mixln"),
        (
            ("FACTOR = 0.5", "from mixln import schemes\nFACTOR = len(schemes()) / 100"),
            "imports list_schemes as schemes",
        ),
        (("bypassed", "scaled_embed"), "scaled_embed is defined twice"),
        (("bypassed", "id"), "defines id, which in other modules is Python's own"),
        (('@register_scheme("theirs", embedding_norm=NORM)\n', ""), "not registered by a decorator"),
    ],
)
def test_a_users_scheme_that_cannot_be_taken_over_is_refused(
    change: tuple[str, str], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SCHEME_OF_A_USER.replace(*change)
    if "@register_scheme" not in source:
        source += '\n\nregister_scheme("theirs")(theirs)\n'
    for name in _registered("theirs", source, tmp_path, monkeypatch):
        model = tiny_model(name)
        if message is None:
            save_self_contained(model, tmp_path / "out")
            continue
        with pytest.raises(InputError, match=message) as caught:
            save_self_contained(model, tmp_path / "out")
        assert "or use save_pretrained" in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_a_scheme_within_a_function_is_refused(tmp_path: Path) -> None:
    @mixln.register_scheme("test_local")
    def local(depth: int, num_layers: int) -> Any:
        return SCHEMES["pre"].function(depth, num_layers)

    try:
        with pytest.raises(InputError, match=f"local is not defined at the top level of {__name__}"):
            save_self_contained(tiny_model("test_local"), tmp_path)
    finally:
        del SCHEMES["test_local"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_what_its_architecture_needs_and_no_more(name: str, tmp_path: Path) -> None:
    file = modelling_file(tiny_architecture_config(name, "pre"))
    assert file.text == modelling_file(tiny_architecture_config(name, "mix")).text
    assert file.text.startswith(f"# Generated by mixln {mixln.__version__}.")
    tree = ast.parse(file.text)
    imported = {
        module.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    assert imported <= {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert len(defined) == len(set(defined))
    own = ARCHITECTURES[name].whole_class.__name__.partition("For")[0]
    assert {one.removeprefix("MixLN")[:3] for one in defined if one.startswith("MixLN")} == {
        own.removeprefix("MixLN")[:3]
    }
    # Admin's profiling belongs to training, `Block` to people's own modules
    assert not {"profile_residual_scales", "Block", "norm_factory", "register_architecture"} & set(defined)
    assert all(ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef))
    (tmp_path / file.name).write_text(file.text)
    if shutil.which("ruff", path=str(Path(sys.executable).parent)):
        checked = subprocess.run(
            [Path(sys.executable).with_name("ruff"), "check", "--isolated", "--select", "F,E7,E9,W,B", tmp_path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout


def test_nothing_that_is_taken_from_a_module_is_completed_by_statements_that_are_not() -> None:
    """A module that fills a table after its definition, or defines something in an `if`, could not be taken apart."""
    for name in NAMES:
        config_class = ARCHITECTURES[name].config_class
        roots = [(one.__module__, one.__name__) for one in (config_class, ARCHITECTURES[name].whole_class)]
        roots += [(entry.function.__module__, entry.function.__name__) for entry in SCHEMES.values()]
        for module in {statement.module for statement in bundle(roots, ["mixln"]).statements}:
            path = Path(str(sys.modules[module].__file__))
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                    assert ast.unparse(node.value.func) == "register_architecture", f"{path}:{node.lineno}"
                elif isinstance(node, ast.Assign):
                    assert all(isinstance(target, ast.Name) for target in node.targets), f"{path}:{node.lineno}"
                else:
                    kinds = (ast.FunctionDef, ast.ClassDef, ast.AnnAssign, ast.Import, ast.ImportFrom, ast.Expr)
                    assert isinstance(node, kinds), f"{path}:{node.lineno}"


def test_what_the_bundle_cannot_find_is_an_error() -> None:
    with pytest.raises(BundleError, match=r"nothing_here is not defined at the top level of mixln\.placement\.plan"):
        bundle([("mixln.placement.plan", "nothing_here")], ["mixln"])
    with pytest.raises(BundleError, match=r"the module itertools has no source"):
        bundle([("itertools", "chain")], ["itertools"])


def test_where_mixln_is_imported_its_own_classes_open_the_folder(tmp_path: Path) -> None:
    model = tiny_model("lns")
    save_self_contained(model, tmp_path / "out")
    assert not hasattr(model.config, "auto_map")
    for options in ({}, {"trust_remote_code": True}):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **options)
        assert type(loaded) is MixLNLlamaForCausalLM
        assert torch.equal(logits_of(loaded, token_ids()), logits_of(model, token_ids()))
    # what is saved without the code does not refer to it
    loaded.save_pretrained(tmp_path / "plain")
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not list((tmp_path / "plain").glob("*.py"))
    AutoConfig.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "config")
    assert "auto_map" not in json.loads((tmp_path / "config" / "config.json").read_text())


def test_stock_classes_still_refuse_the_folder(tmp_path: Path) -> None:
    save_self_contained(tiny_model("lns"), tmp_path)
    with pytest.raises(Exception, match="trust_remote_code=True"):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_the_stack_alone_is_saved_with_its_code(tmp_path: Path) -> None:
    save_self_contained(tiny_model("mix").model, tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
    }
    assert (tmp_path / "modeling_mixln_llama.py").is_file()


def test_a_model_with_another_head_is_refused(tmp_path: Path) -> None:
    class WithAnotherHead(MixLNLlamaForCausalLM):
        pass

    model = WithAnotherHead(tiny_architecture_config("llama", "mix"))
    with pytest.raises(InputError, match="WithAnotherHead has a head"):
        save_self_contained(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_uploading_at_once_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="save it, then upload the folder"):
        save_self_contained(tiny_model("mix"), tmp_path, push_to_hub=True)


def test_a_process_that_does_not_write_leaves_no_file(tmp_path: Path) -> None:
    save_self_contained(tiny_model("mix"), tmp_path, is_main_process=False)
    assert not list(tmp_path.glob("*.py"))


def test_a_config_of_no_registered_architecture_is_refused() -> None:
    class Unregistered(MixLNLlamaConfig):
        model_type = "mixln_unregistered"

    with pytest.raises(InputError, match=r"call mixln\.models\.register_architecture"):
        modelling_file(Unregistered())
