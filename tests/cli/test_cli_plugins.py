"""Schemes, modifiers and measures of one's own, from a file or an installed package."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mixln
from mixln import plugins
from mixln.cli import main
from mixln.errors import InputError
from mixln.placement.registry import MODIFIERS, SCHEMES
from mixln.studies import diagnosis_config

PLUGIN = '''
from dataclasses import replace

from mixln import register_measure, register_modifier, register_scheme
from mixln.measure.growth import StreamGrowth
from mixln.placement import NORM, BlockPlan, SublayerPlan
from mixln.report.series import ColumnSpec
from mixln.studies.measuring import Found, Observed, series_of


@register_scheme("late", formula="N_out on the attention alone", source="an example")
def late(depth: int, num_layers: int) -> BlockPlan:
    """N_out on the attention."""
    return BlockPlan(attention=SublayerPlan(output_norm=NORM), feed_forward=SublayerPlan(input_norm=NORM))


@register_modifier("doubled")
def doubled(plan):
    """The embedding output times 2."""
    return replace(plan, embedding_scale=2.0)


class _Loudness(Observed):
    name = "loudness"
    rank = 500
    measure = StreamGrowth

    def read(self, measure: StreamGrowth) -> Found:
        return Found([series_of("loudness", "state", "units of the stream", measure.rms())])


register_measure(_Loudness())
'''
TINY = [
    *("--hidden-size", "32", "--intermediate-size", "64", "--num-hidden-layers", "2", "--batch-size", "4"),
    *("--vocab-size", "400", "--sequence-length", "64", "--validation-fraction", "0.2", "--steps", "2"),
    *("--max-validation-tokens", "1000", "--trackers", "[]"),
]


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """A plugin that is not loaded, and that is not there any more after the test."""
    registries: list[Any] = [SCHEMES, MODIFIERS, plugins._LOADED, diagnosis_config._REGISTERED]
    before = [dict(registry) for registry in registries]
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    yield path
    for registry, saved in zip(registries, before, strict=True):
        registry.clear()
        registry.update(saved)


def test_every_command_knows_what_a_plugin_registers(
    plugin: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--plugin", str(plugin)]
    assert main(["schemes", *given]) == 0
    assert "late" in capsys.readouterr().out
    assert main(["schemes", "late+doubled", *given]) == 0
    assert "N_out on the attention alone" in " ".join(capsys.readouterr().out.split())
    cache = ["--cache", str(tmp_path / "cache")]
    run = tmp_path / "run"
    command = ["train", "--text", str(corpus), *cache, *TINY, "--placement", "late+doubled", "--out", str(run)]
    assert main([*command, *given]) == 0, capsys.readouterr().err
    (recorded,) = json.loads((run / "recipe.json").read_text())["plugins"]
    assert recorded == vars(mixln.load_plugin(plugin))
    assert recorded["name"] == "mine.py"
    assert len(recorded["sha256"]) == 64
    measured = ["--text", str(corpus), "--max-tokens", "200", "--sequence-length", "32", "--only", "loudness"]
    out = tmp_path / "diagnosis"
    assert main(["diagnose", str(run / "model"), *measured, "--out", str(out), *given]) == 0, capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert "loudness" in report["models"][0]["series"]
    assert "plugin mine.py (sha256" in report["machine"]
    code = """
import sys, mixln
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except Exception as error:
    print(error)
mixln.load_plugin(sys.argv[2])
print(AutoModelForCausalLM.from_pretrained(sys.argv[1]).config.placement)
"""
    process = [sys.executable, "-c", code, str(run / "model"), str(plugin)]
    lines = subprocess.run(process, capture_output=True, text=True, check=True, timeout=300).stdout.splitlines()
    assert any("unknown scheme 'late'" in line and "mixln.load_plugin(FILE)" in line for line in lines[:-1])
    assert lines[-1] == "late+doubled"


def test_a_plugin_is_run_once_in_a_process(plugin: Path) -> None:
    found = mixln.load_plugin(plugin)
    assert mixln.load_plugin(str(plugin)) is found
    assert mixln.loaded_plugins()[-1] == found
    with pytest.raises(InputError, match="there is a measure 'loudness' already"):
        mixln.register_measure(diagnosis_config._REGISTERED["loudness"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.txt", "", "is no Python file"),
        ("missing.py", None, "cannot be read: No such file or directory"),
        ("bad.py", "x = 1\ny = x / 0\n", "raises ZeroDivisionError: division by zero (line 2)"),
        ("bad.py", "def f(:\n", "raises SyntaxError: invalid syntax (line 1)"),
        (
            "taken.py",
            "from mixln import register_scheme\nfrom mixln.placement import BlockPlan\n"
            "@register_scheme('pre')\ndef f(depth: int, num_layers: int) -> BlockPlan: ...\n",
            "'pre' is already registered",
        ),
    ],
)
@pytest.mark.usefixtures("plugin")
def test_a_plugin_that_does_not_load_is_one_message(
    name: str, text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert main(["schemes", "--plugin", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mixln: --plugin {tmp_path / name}")
    assert message in line


def test_installed_packages_name_their_plugins_as_entry_points(
    plugin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Finder(importlib.metadata.DistributionFinder):
        """Finds one distribution, with an entry point."""

        def find_distributions(self, context: object = None) -> Iterator[importlib.metadata.Distribution]:
            del context
            folder = plugin.parent / "mine-1.2.dist-info"
            folder.mkdir(exist_ok=True)
            (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.2\n")
            (folder / "entry_points.txt").write_text("[mixln.plugins]\nlate = mine\n")
            yield importlib.metadata.PathDistribution(folder)

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    monkeypatch.syspath_prepend(plugin.parent)
    assert main(["schemes", "late"]) == 0
    assert "N_out on the attention alone" in " ".join(capsys.readouterr().out.split())
    assert "late of mine 1.2" in map(str, mixln.loaded_plugins())
