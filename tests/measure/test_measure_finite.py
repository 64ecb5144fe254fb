"""Numbers that are none: in weights, in hidden states, and in what a changed model gives."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measure_architectures import MODELS, make_batch
from torch import Tensor, nn

from mixln.errors import InputError
from mixln.measure.performance import LanguageModelLoss
from mixln.models.finite import require_finite_parameters
from mixln.report.depth_report import layer_rows, shown_columns
from mixln.studies.diagnose import diagnose_batches, make_report
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.prune import choose_layers

REMOVALS = DiagnosisConfig(measures=("removal",), run_lengths=(2,))


@pytest.mark.parametrize(("value", "words"), [(math.nan, "1 values that are not a number"), (-math.inf, "1 that are")])
def test_one_number_that_is_none_is_refused_by_the_name_of_its_tensor(value: float, words: str) -> None:
    model = MODELS["llama"]()
    require_finite_parameters(model)
    with torch.no_grad():
        model.get_parameter("model.layers.2.mlp.up_proj.weight")[5, 7] = value
    with pytest.raises(InputError, match=rf"model\.layers\.2\.mlp\.up_proj\.weight.*{words}.*\(48, 32\)"):
        diagnose_batches(model, [make_batch(model)], LanguageModelLoss(), REMOVALS)


def test_weights_that_are_not_loaded_are_refused() -> None:
    model = MODELS["llama"]()
    batch = make_batch(model)
    with pytest.raises(InputError, match=r"not loaded \(model\.embed_tokens\.weight is on the meta device\)"):
        diagnose_batches(nn.Module.to(model, "meta"), [batch], LanguageModelLoss(), REMOVALS)


def test_tensors_that_cannot_be_looked_at_are_passed_over() -> None:
    model = nn.ModuleDict({"meta": nn.Linear(2, 2, device="meta"), "whole": nn.Linear(2, 2), "empty": nn.Linear(0, 2)})
    model.register_buffer("mask", torch.full((2, 2), -math.inf))
    model.register_buffer("packed", torch.zeros(4, dtype=torch.uint8))
    model.register_buffer("eight", torch.zeros(4).to(torch.float8_e4m3fn))
    require_finite_parameters(model)
    model.get_buffer("mask")[0, 0] = math.nan
    with pytest.raises(InputError, match="the buffer mask"):
        require_finite_parameters(model)


def test_hidden_states_that_overflow_are_refused_by_the_first_block_that_gives_them() -> None:
    model = MODELS["llama"]()
    batch = make_batch(model)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(1e308)
    with pytest.raises(InputError, match=r"block 2 of model\.layers gives \d+ hidden states.*float64.*float32 or bf"):
        diagnose_batches(model, [batch], LanguageModelLoss(), REMOVALS)
    model = MODELS["llama"]()
    with torch.no_grad():
        model.get_parameter("lm_head.weight").mul_(1e308)
    with pytest.raises(InputError, match=r"the loss of the whole model is infinite.*after the blocks overflows"):
        diagnose_batches(model, [batch], LanguageModelLoss(), REMOVALS)


def test_a_changed_model_that_overflows_is_shown_and_never_chosen(tmp_path: Path) -> None:
    """Block 3 makes its input larger than float64 goes, unless block 2 has made it small."""
    model = MODELS["llama"]()
    batch = make_batch(model)

    def smaller(_block: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output * 1e-305

    def larger(_block: nn.Module, args: Any, _output: Tensor) -> Tensor:
        return args[0] * 1.7e308

    model.get_submodule("model.layers.1").register_forward_hook(smaller)
    model.get_submodule("model.layers.2").register_forward_hook(larger)
    judged = replace(REMOVALS, without=("token_frequencies",))  # its weights are drawn: no layer would get a verdict
    found = diagnose_batches(model, [batch], LanguageModelLoss(), judged)
    removal = found.series["removal"]
    assert removal.values[1] == math.inf
    assert [math.isfinite(value) for value in removal.values] == [True, False, True, True]
    assert removal.estimates[1].interval is None
    assert 2 not in found.dead_layers
    sentences = " ".join(found.findings)
    assert "Without layer 2 the model gives no finite number." in sentences
    assert "nan" not in sentences + make_report([found], text="").headline
    columns = shown_columns(found)
    assert layer_rows(found, columns)[1][1] == "inf"
    make_report([found], text="").save(tmp_path / "report")
    assert "NaN" not in (tmp_path / "report" / "report.json").read_text()
    assert 1 not in choose_layers(found, 3, "removal", consecutive=False)
    with pytest.raises(InputError, match="cannot be chosen by angular"):
        choose_layers(found, 1, "angular", consecutive=True)
