"""What is imported when: names of packages at their first use, architectures when transformers asks for one."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mixln

PACKAGES = ["mixln", *(module.name for module in pkgutil.walk_packages(mixln.__path__, "mixln.") if module.ispkg)]


def run(code: str, folder: Path | None = None) -> str:
    """Run Python in a process of its own, and return what it prints."""
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_no_module_hides_it(package: str) -> None:
    found = importlib.import_module(package)
    listed = getattr(found, "__all__", [])
    assert set(listed) <= set(dir(found))
    modules = {module.name for module in pkgutil.iter_modules(found.__path__)}
    for name in {*listed, *(name for name in dir(found) if not name.startswith("_"))}:
        assert hasattr(found, name)
        assert name not in modules or getattr(found, name) is importlib.import_module(f"{package}.{name}")
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'no_such_name'"):
        _ = found.no_such_name


def test_a_package_imports_nothing_before_a_name_is_used() -> None:
    heavy = "{'torch', 'transformers', 'pydantic', 'huggingface_hub'} & set(sys.modules)"
    assert run(f"import sys, mixln, mixln.training, mixln.data, mixln.tasks, mixln.report\nprint({heavy})") == "set()"
    assert run("import sys, mixln\nmixln.training.train\nprint('torch' in sys.modules)") == "True"


@pytest.mark.parametrize(
    "imports",
    [
        "import mixln, transformers",
        "import transformers, mixln",
        "from transformers import AutoConfig; import mixln.training",
    ],
)
def test_auto_classes_open_models_whichever_is_imported_first(imports: str, tmp_path: Path) -> None:
    config = mixln.MixLNLlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, placement="mix"
    )
    mixln.MixLNLlamaForCausalLM(config).save_pretrained(tmp_path)
    opened = "transformers.AutoModelForCausalLM.from_pretrained('.')"
    code = (
        f"{imports}\nimport transformers\nprint(type({opened}).__name__, transformers.MixLNLlamaForCausalLM.__name__)"
    )
    assert run(code, tmp_path) == "MixLNLlamaForCausalLM MixLNLlamaForCausalLM"


def test_a_spawned_process_knows_the_architectures() -> None:
    code = """
import multiprocessing, mixln
from transformers import AutoConfig
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        config = mixln.MixLNLlamaConfig(num_hidden_layers=1, placement="lns")
        print(pool.apply(type, (config,)).__name__, pool.apply(AutoConfig.for_model, ("mixln_llama",)).model_type)
"""
    assert run(code) == "MixLNLlamaConfig mixln_llama"


def test_transformers_lists_the_model_types_and_refuses_others() -> None:
    from transformers import CONFIG_MAPPING

    assert "mixln_llama" in CONFIG_MAPPING
    assert "mixln_llama" in list(CONFIG_MAPPING.keys())
    assert "mixln_nothing" not in CONFIG_MAPPING


def test_a_package_gives_no_names_that_its_modules_only_import() -> None:
    package = importlib.import_module("mixln.placement")
    assert package.Residual is not None
    for name in ("torch", "nn", "Callable", "replace", "POINTWISE"):
        assert not hasattr(package, name)


@pytest.mark.parametrize("importer", ["the module itself", "another thread"])
def test_an_action_for_a_module_whose_code_is_running_is_done_after_it(importer: str, tmp_path: Path) -> None:
    ask = "after_import('slow', lambda module: done.append(module.last))"
    (tmp_path / "slow.py").write_text(
        "import hook\nhook.started.set()\n"
        + (f"from hook import *\n{ask}\n" if importer == "the module itself" else "hook.asked.wait(60)\n")
        + "last = 1\n"
    )
    (tmp_path / "hook.py").write_text(
        "import threading\nfrom mixln.lazy import after_import\n"
        "done, started, asked = [], threading.Event(), threading.Event()\n"
    )
    code = "import threading\nfrom hook import *\n"
    if importer == "the module itself":
        code += "import slow\n"
    else:
        code += "def load(): import slow\nthread = threading.Thread(target=load); thread.start(); started.wait(60)\n"
        code += f"{ask}; assert done == []; asked.set(); thread.join()\n"
    code += "print(done)\nimport slow\nassert len(done) == 1"
    assert run(code, tmp_path) == "[1]"


def test_an_action_that_fails_makes_every_import_fail(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text("")
    code = """
from mixln.lazy import after_import
def refuse(module): raise ImportError("not this one")
after_import("told", refuse)
for _ in range(2):
    try: import told
    except ImportError as error: print(error)
"""
    assert run(code, tmp_path).splitlines() == ["not this one"] * 2


@pytest.mark.parametrize("first", ["mixln", "transformers.models.auto"])
def test_another_transformers_without_the_mapping_of_model_types_is_named(first: str, tmp_path: Path) -> None:
    auto = tmp_path / "transformers" / "models" / "auto"
    auto.mkdir(parents=True)
    (tmp_path / "transformers" / "__init__.py").write_text("__version__ = '99.0'")
    (tmp_path / "transformers" / "models" / "__init__.py").write_text("")
    (auto / "__init__.py").write_text("")
    (auto / "configuration_auto.py").write_text("CONFIG_MAPPING = {}")
    code = f"""
try: import {first}, mixln, transformers.models.auto.configuration_auto
except ImportError as error: print(error)
"""
    message = "mixln does not work with transformers 99.0: CONFIG_MAPPING has no _extra_content. Install a version"
    assert run(code, tmp_path).startswith(message)


def test_two_actions_for_one_module_are_both_done() -> None:
    """Each asks all finders where the module is, the other one too."""
    program = (
        "from mixln.lazy import after_import; done = []\n"
        "for number in (1, 2, 3): after_import('colorsys', lambda module, number=number: done.append(number))\n"
        "import colorsys; assert sorted(done) == [1, 2, 3], done\n"
        "import importlib, sys; assert not any('AfterImport' in type(one).__name__ and one._name == 'colorsys' "
        "for one in sys.meta_path)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
