"""Admin's profiling pass as part of a training run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixln.data import PreparedData, training_batch
from mixln.placement import profile_residual_scales
from mixln.tasks import Recipe, build_model, pretrain
from mixln.training import OptimizerConfig


def admin(recipe: Recipe, **changes: object) -> Recipe:
    return replace(recipe, model=replace(recipe.model, placement="admin"), **changes)  # pyright: ignore[reportArgumentType]


def scales(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model" / "model.safetensors")
    return {name: weight for name, weight in weights.items() if name.endswith("residual_scale")}


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_a_run_begins_with_the_scales_of_its_first_batch(
    recipe: Recipe, data: PreparedData, tmp_path: Path, micro_batch_size: int | None
) -> None:
    still = OptimizerConfig(learning_rate=1e-12)
    wanted = admin(recipe, steps=1, micro_batch_size=micro_batch_size, optimizer=still, precision="float32")
    pretrain(wanted, data, tmp_path)
    model = build_model(wanted, data.tokenizer)
    batch = training_batch(data.train, 0, wanted.batch_size, wanted.seed)
    rows = slice(0, micro_batch_size)
    expected = profile_residual_scales(
        model, lambda: model(input_ids=batch.input_ids[rows], position_ids=batch.position_ids[rows], use_cache=False)
    )
    found = scales(tmp_path)
    assert len(found) == 2 * wanted.model.num_hidden_layers
    for layer in range(wanted.model.num_hidden_layers):
        for number, sublayer in enumerate(("attention", "feed_forward")):
            omega = found[f"model.layers.{layer}.{sublayer}_residual.residual_scale"]
            torch.testing.assert_close(omega, torch.full_like(omega, expected[2 * layer + number]), rtol=1e-5, atol=0)
    assert expected[0] == 1
    assert len(set(expected)) > 1


def test_the_scales_are_learned(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    pretrain(admin(recipe), data, tmp_path)
    assert all(omega.std() > 0 for omega in scales(tmp_path).values())
