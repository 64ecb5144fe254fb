"""torch.export, by PyTorch itself and by the exporters of transformers: the program computes what the model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from ecosystem_tools import OTHER_ARCHITECTURES, PLACEMENTS, build, grown, logits_of
from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

import mixln
from mixln.models import language_models
from mixln.models.decoder import PlacedForCausalLM

SCHEMES = [scheme for scheme in mixln.schemes() if scheme != "mix"]
MODIFIED = [f"{scheme}+{modifier}" for scheme in mixln.schemes() for modifier in mixln.modifiers()]
FIRST_IS_QUICK = [PLACEMENTS[0], *(pytest.param(text, marks=pytest.mark.slow) for text in PLACEMENTS[1:])]
VOCABULARY = 97


def model_of(placement: str, architecture: str = "llama") -> PlacedForCausalLM:
    # two layers: a block of each kind of `mix`, and a factor other than 1 in `lns`
    return grown(build(placement, VOCABULARY, architecture, num_hidden_layers=2))


def token_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(length))


def export(model: PlacedForCausalLM, *, any_size: bool) -> torch.export.ExportedProgram:
    """Export for two rows of twelve tokens, or for any number of rows and any length."""
    sizes = {0: torch.export.Dim("rows", max=64), 1: torch.export.Dim("length", max=64)}
    return torch.export.export(
        model,
        (),
        {"input_ids": token_ids(2, 12), "use_cache": False},
        dynamic_shapes={"input_ids": sizes, "use_cache": None} if any_size else None,
        strict=False,
    )


def check(program: torch.export.ExportedProgram, model: PlacedForCausalLM, *, any_size: bool) -> None:
    run = program.module()
    for rows, length in [(2, 12), (3, 40)] if any_size else [(2, 12)]:
        ids = token_ids(rows, length)
        found = run(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(found, logits_of(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("placement", ["mix(alpha=0.5)", *SCHEMES])
def test_an_exported_scheme_is_eager(placement: str) -> None:
    model = model_of(placement)
    check(export(model, any_size=False), model, any_size=False)


@pytest.mark.parametrize("architecture", OTHER_ARCHITECTURES)
def test_an_exported_architecture_is_eager(architecture: str) -> None:
    model = model_of("mix(alpha=0.5)", architecture)
    check(export(model, any_size=False), model, any_size=False)


def test_a_program_for_any_size_is_saved_and_loaded(tmp_path: Path) -> None:
    model = model_of("mix(alpha=0.5)")
    torch.export.save(export(model, any_size=True), tmp_path / "model.pt2")
    check(torch.export.load(tmp_path / "model.pt2"), model, any_size=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")
@pytest.mark.parametrize(
    "placement", ["mix(alpha=0.5)", *SCHEMES, *(f"pre+{modifier}" for modifier in mixln.modifiers())]
)
def test_every_placement_is_exported_for_any_size(placement: str) -> None:
    model = model_of(placement)
    check(export(model, any_size=True), model, any_size=True)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", language_models())
def test_every_architecture_is_exported_for_any_size(architecture: str) -> None:
    model = model_of("mix(alpha=0.5)+qk_norm", architecture)
    check(export(model, any_size=True), model, any_size=True)


@pytest.mark.parametrize("placement", FIRST_IS_QUICK)
def test_the_exporter_of_transformers_takes_it(placement: str, tmp_path: Path) -> None:
    configs = pytest.importorskip("transformers.exporters.configs", reason="this transformers has no exporters yet")
    from transformers.exporters.exporter_dynamo import DynamoExporter

    model, ids = model_of(placement), token_ids(2, 12)
    exported = cast(Any, DynamoExporter()).export(model, {"input_ids": ids}, config=configs.DynamoConfig())
    torch.testing.assert_close(exported(input_ids=ids).logits, logits_of(model, ids), rtol=0, atol=1e-5)
    exported.save_pretrained(tmp_path)
    assert (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize("placement", FIRST_IS_QUICK)
def test_a_program_with_its_own_cache_continues_as_generate_does(placement: str) -> None:
    """One token at a time; the keys and values are in the program."""
    model, prompt = model_of(placement), token_ids(1, 5)
    for parameter in model.parameters():
        parameter.requires_grad = False
    expected = cast(Any, model).generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    cast(Any, model).generation_config.cache_implementation = "static"
    wrapped = TorchExportableModuleForDecoderOnlyLM(cast(Any, model), batch_size=1, max_cache_len=16)
    step = wrapped.export(input_ids=prompt[:, :1], strict=False).module()
    tokens = prompt
    for place in range(expected.shape[1] - 1):
        logits = step(input_ids=tokens[:, place : place + 1], cache_position=torch.tensor([place]))
        if place == tokens.shape[1] - 1:
            tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(tokens, expected)
