"""How the command line starts: what it does not import, and Ctrl-C before it works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixln.commands import COMMANDS

HEAVY = ("torch", "transformers", "pydantic", "huggingface_hub", "matplotlib", "datasets")


def heavy_imports(code: str) -> list[str]:
    """Run Python in a process of its own, and return which heavy packages it has imported."""
    code = f"import atexit, json, sys\natexit.register(lambda: print(json.dumps([*sys.modules])))\n{code}"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    modules = set(json.loads(finished.stdout.splitlines()[-1]))
    assert "mixln" in modules
    return sorted(modules.intersection(HEAVY))


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "schemes",
        "schemes mix(alpha=0.5)+gpas",
        "schemes sandwhich",
        "trian",
        "train --stepps 5",
        "train --steps many",
        "generate",
        *(f"{name} --help" for name in COMMANDS),
    ],
)
def test_no_heavy_package_is_imported(arguments: str) -> None:
    assert heavy_imports(f"from mixln.cli import main\nmain({arguments.split()!r})") == []


@pytest.mark.parametrize("module", ["mixln", "mixln.training.config", "mixln.data.config", "mixln.commands.train"])
def test_the_configs_need_no_heavy_package(module: str) -> None:
    assert heavy_imports(f"import {module}") == []


@pytest.mark.parametrize("module", ["argparse", "docstring_parser", "torch", "transformers.models.auto"])
def test_ctrl_c_while_modules_are_imported_is_one_line(module: str) -> None:
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # of a shell's background jobs it is ignored
class Press:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
sys.argv = ["mixln", "train"]
from mixln.__main__ import main
sys.exit(main())
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 130
    messages = [line for line in finished.stderr.splitlines() if line.startswith("mixln: ")]
    assert len(messages) == 1
    assert messages[0].startswith("mixln: interrupted")
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train --out {tmp}/out --steps 7", "llama, 12 layers, hidden size 128, pre|7 of 8 x 256|python, the standard"),
        ("compare --schemes pre mix --seeds 0 1 --out {tmp}/out", "pre, mix|in each of 4 runs|{tmp}/out"),
        ("data prepare --corpus {tmp} --out {tmp}/out", "{tmp}, a folder|{tmp}/out"),
        ("estimate --device h100 --count 2", "llama, 12 layers|2 x h100"),
        ("diagnose {tmp} --out {tmp}/out", "{tmp}, LlamaForCausalLM, 3 layers|python, the standard|{tmp}/out"),
        ("prune {tmp} {tmp}/out --drop 1 --heal {tmp}/text", "LlamaForCausalLM, 3 layers|{tmp}/text|{tmp}/out"),
        ("remove-norm {tmp} {tmp}/out", "LlamaForCausalLM, 3 layers|python, the standard|{tmp}/out"),
        ("generate {tmp} text", "LlamaForCausalLM, 3 layers"),
        ("finetune {tmp} {tmp}/data.jsonl --out {tmp}/out", "LlamaForCausalLM, 3 layers|{tmp}/data.jsonl|{tmp}/out"),
        ("reward {tmp} {tmp}/pairs.jsonl --out {tmp}/out", "LlamaForCausalLM, 3 layers|{tmp}/pairs.jsonl|{tmp}/out"),
        (
            "evaluate {tmp} --tasks {tmp}/config.json --out {tmp}/out",
            "3 layers|tasks:      {tmp}/config.json|{tmp}/out",
        ),
        ("export {tmp} {tmp}/out --step 3", "{tmp}, step 3|{tmp}/out"),
        ("convert {tmp} {tmp}/out --to hf", "{tmp}|{tmp}/out"),
    ],
)
def test_every_command_says_what_it_will_do_before_it_imports_pytorch(command: str, said: str, tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = f"""
import sys
class Stop:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
from mixln.cli import main
sys.exit(main({command.format(tmp=tmp_path).split()!r}))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 130, finished.stderr
    assert finished.stdout == ""
    for words in said.format(tmp=tmp_path).split("|"):
        assert words in finished.stderr


def test_garbage_is_collected_when_a_command_runs() -> None:
    """It is not while the command line starts, and nothing is kept from collection but by help, which ends then."""
    code = """
import atexit, gc, sys
atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 0))
from mixln.__main__ import main
sys.argv = ["mixln", {!r}, *{!r}]
sys.exit(main())
"""
    for arguments, expected in ((("schemes", []), "True False"), (("schemes", ["--help"]), "False True")):
        command = [sys.executable, "-c", code.format(*arguments)]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        assert finished.stdout.splitlines()[-1] == expected
