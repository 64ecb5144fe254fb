"""Estimates of classifiers of images: parameters, operations and memory against PyTorch's own counts."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_tools import write_images
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification

from mixln.errors import InputError
from mixln.estimation import ShardingPlan, count_operations, estimate, memory_use
from mixln.estimation.kinds import ESTIMATED
from mixln.estimation.memory import MicroBatch
from mixln.tasks.image_classification import ImageClassificationObjective, image_model_config
from mixln.tasks.image_config import ImageTrainingConfig
from mixln.tasks.kinds import IMAGES
from mixln.tasks.recipes import load_recipe, recipes_of
from mixln.training.compilation import can_compile, compile_objective

if importlib.util.find_spec("timm") is None:
    pytest.skip("needs mixln[vision]", allow_module_level=True)

OF_IMAGES = ESTIMATED[IMAGES]


def small(**model: Any) -> ImageTrainingConfig:
    recipe: ImageTrainingConfig = load_recipe("vit-nano-cifar", {"model.num_hidden_layers": 3, "batch_size": 4})
    return replace(recipe, model=replace(recipe.model, **model))


def built(recipe: ImageTrainingConfig, device: str, classes: int = 10) -> Any:
    config = image_model_config(recipe.model, list(map(str, range(classes))))
    with torch.device(device):
        return AutoModelForImageClassification.from_config(config)


@pytest.mark.parametrize("name", recipes_of([IMAGES]))
def test_parameters_are_those_of_the_model(name: str) -> None:
    recipe = load_recipe(name)
    count = OF_IMAGES.parameters(recipe)
    classes = OF_IMAGES.shape(recipe).vocabulary
    assert classes == (10 if "cifar" in name else 1000)
    assert count.total == sum(one.numel() for one in built(recipe, "meta", classes).parameters())
    assert count.total == count.embedding + count.head + count.in_blocks + count.other
    assert count.head == (recipe.model.hidden_size + 1) * classes


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_operations_are_those_that_pytorch_counts(placement: str) -> None:
    recipe = small(placement=placement)
    model, shape, count = built(recipe, "meta"), OF_IMAGES.shape(recipe), OF_IMAGES.parameters(recipe)
    images = torch.zeros(1, 3, 32, 32, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(pixel_values=images).logits.sum().backward()
    found = count_operations(shape, count, explicit_attention=False, activation_checkpointing=False)
    assert shape.sequence == 65
    # beside norms and biases: PyTorch takes no gradient of the pixels, and patches are one token fewer
    per_image = shape.sequence * found.executed
    assert counter.get_total_flops() == pytest.approx(per_image, rel=0.02)
    assert estimate(recipe, "h100").operations.model == pytest.approx(per_image)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="needs a C++ compiler")
@pytest.mark.parametrize("placement", ["pre", "post", "mix(alpha=0.5)"])
def test_activations_are_what_compiled_blocks_save(placement: str) -> None:
    """Of all saved tensors that have a token dimension, in bytes for each token."""
    recipe = small(placement=placement, num_hidden_layers=4)
    objective = ImageClassificationObjective(built(recipe, "cpu").train())
    compile_objective(objective)
    rows, tokens = 3, recipe.model.positions
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim > 1 and set(tensor.shape) & {rows, rows * tokens, rows * 4}:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        objective(torch.randn(rows, 3, 32, 32), torch.eye(10)[:rows]).backward()
    use = memory_use(
        OF_IMAGES.shape(recipe),
        OF_IMAGES.parameters(recipe),
        ShardingPlan("ddp", 1),
        MicroBatch(rows, 1),
        low=2,
        explicit_attention=False,
    )
    assert use.activations == pytest.approx(sum(saved.values()), rel=0.15)


def test_it_is_told_by_images() -> None:
    found = estimate(small(), "h100", 2)
    shown = str(found)
    assert "images per second" in shown
    assert "MFLOP per image" in shown
    assert "images in a micro-batch" in shown
    assert found.tokens_per_step == 4
    assert found.time.tokens_per_second == pytest.approx(4 / found.time.step_seconds)
    written = found.to_dict()
    assert (written["images_per_step"], "tokens_per_step" in written) == (4, False)
    assert written["time"]["images_per_second"] == found.time.tokens_per_second
    for own in ("tokens of an image", "* tokens", "class token", "tokens^2"):
        shown = shown.replace(own, "")
    assert "token" not in shown


def test_classes_are_counted_where_the_images_lie(tmp_path: Path) -> None:
    recipe = load_recipe("vit-nano-cifar", {"images": str(write_images(tmp_path / "images", 2, 1))})
    assert OF_IMAGES.shape(recipe).vocabulary == 3


def test_what_cannot_be_shared_out_is_refused() -> None:
    recipe = small()
    execution = replace(recipe.execution, strategy="fsdp", tensor_parallel_size=2)
    with pytest.raises(InputError, match="no plan for tensor parallelism"):
        estimate(replace(recipe, execution=execution), "h100", 2)
