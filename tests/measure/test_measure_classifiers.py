"""Classifiers of images: loss and accuracy without each layer, gradients, and the constants that they must beat."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from mixln.errors import InputError
from mixln.measure import ClassificationLoss, ModelBatch, gradient_norms
from mixln.models.anatomy import find_block_stack
from mixln.models.architectures.vit import MixLNViTConfig, MixLNViTForImageClassification
from mixln.report.diagnosis import ModelDiagnosis
from mixln.studies.diagnose import diagnose_batches
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.measures import removal
from mixln.studies.measuring import Given, observe_all

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 5,
}
SWIN: dict[str, Any] = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [3], "num_heads": [2]}

ANY: Any = SimpleNamespace(swin=SwinConfig, siglip=SiglipConfig)
"""Configs that take fields of their base, of which type checkers do not know."""

MODELS: dict[str, Callable[[], Any]] = {
    "vit": lambda: ViTForImageClassification(ViTConfig(**SIZES)),
    "deit": lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(**SIZES)),
    "beit": lambda: BeitForImageClassification(BeitConfig(**SIZES)),
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(**SIZES)),
    "swin": lambda: SwinForImageClassification(ANY.swin(**SWIN, window_size=4, num_labels=5)),
    "siglip": lambda: SiglipForImageClassification(ANY.siglip(vision_config=SIZES, num_labels=5)),
    "mix": lambda: MixLNViTForImageClassification(MixLNViTConfig(**SIZES, placement="mix(post_layers=1)")),
}
COUNT = 12


def built(name: str) -> tuple[Any, str]:
    """A model of three blocks, and the name of their list."""
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == 3]
    return model, lists[0]


def images(model: Any, classes: torch.Tensor | None = None, count: int = COUNT) -> ModelBatch:
    generator = torch.Generator().manual_seed(1)
    config = getattr(model.config, "vision_config", model.config)
    pixels = torch.randn(count, 3, config.image_size, config.image_size, generator=generator, dtype=torch.float64)
    if classes is None:
        with torch.no_grad():  # most of them right, so that a removed layer can lose some
            labels = model(pixel_values=pixels).logits.argmax(1)
        labels[::4] = (labels[::4] + 1) % 5
    else:
        labels = classes
    return ModelBatch({"pixel_values": pixels}, None, labels, torch.arange(count))


def by_hand(model: nn.Module, batch: ModelBatch) -> tuple[list[float], list[bool]]:
    """The loss of each image, and whether the model is right on it."""
    assert batch.targets is not None
    losses: list[float] = []
    right: list[bool] = []
    for pixels, target in zip(batch.arguments["pixel_values"], batch.targets.tolist(), strict=True):
        with torch.no_grad():
            logits = model(pixel_values=pixels[None]).logits[0].tolist()
        top = max(logits)
        losses.append(top + math.log(sum(math.exp(logit - top) for logit in logits)) - logits[target])
        right.append([index for index, logit in enumerate(logits) if logit == top] == [target])
    return losses, right


def without(model: Any, blocks: str, index: int) -> Any:
    """A copy whose list of blocks is shorter."""
    other = copy.deepcopy(model)
    layers = other.get_submodule(blocks)
    del layers[index]
    return other


def mean(values: list[Any]) -> float:
    return sum(map(float, values)) / len(values)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_accuracy_without_each_layer(name: str) -> None:
    model, blocks = built(name)
    batch = images(model)
    found = diagnose_batches(
        model,
        [batch.rows(0, 5), batch.rows(5, COUNT)],
        ClassificationLoss(),
        DiagnosisConfig(measures=("removal",), stack=blocks),
    )
    losses, right = by_hand(model, batch)
    assert found.layers_name == blocks
    assert found.performance == "loss, nats per image"
    assert found.series["performance"].values == pytest.approx([mean(losses)])
    assert found.series["accuracy"].values == pytest.approx([mean(right)])
    assert any(found.series["accuracy_lost"].values)
    for index in range(3):
        other_losses, other_right = by_hand(without(model, blocks, index), batch)
        lost = [int(one) - int(other) for one, other in zip(right, other_right, strict=True)]
        assert found.series["removal"].values[index] == pytest.approx(mean(other_losses) - mean(losses))
        estimate = found.series["accuracy_lost"].estimates[index]
        assert estimate.value == pytest.approx(mean(lost))
        # the interval of a mean of paired differences; 2.200985 is t(0.975, 11)
        spread = math.sqrt(sum((one - mean(lost)) ** 2 for one in lost) / (COUNT - 1) / COUNT)
        assert estimate.high - estimate.value == pytest.approx(2.200985 * spread, abs=1e-7)


def test_runs_of_layers_lose_accuracy_too() -> None:
    model, blocks = built("vit")
    batch = images(model)
    config = DiagnosisConfig(measures=("removal",), run_lengths=(2,))
    found = diagnose_batches(model, [batch], ClassificationLoss(), config)
    _, right = by_hand(model, batch)
    for first in range(2):
        _, other = by_hand(without(without(model, blocks, first), blocks, first), batch)
        assert found.series["accuracy_lost_of_2"].values[first] == pytest.approx(mean(right) - mean(other))
    assert found.series["removal_of_2"].axis == found.series["accuracy_lost_of_2"].axis == "first_of_run"
    (runs,) = (figure for figure in found.shown.figures if figure.name == "run_removal")
    assert runs.series == {"removal_of_2": "2 layers"}


def test_removal_alone_is_what_a_comparison_takes() -> None:
    model, _ = built("mix")
    batch = images(model)
    found = observe_all([removal.ENTRY], Given(find_block_stack(model), ClassificationLoss()), [batch])
    assert {"removal", "performance", "accuracy", "accuracy_lost"} == {series.name for series in found.series}


@pytest.mark.parametrize("name", ["vit", "mix", "beit"])
def test_gradients_are_those_of_the_mean_loss(name: str) -> None:
    model, blocks = built(name)
    batch = images(model)
    found = gradient_norms(model, [batch.rows(0, 5), batch.rows(5, COUNT)], ClassificationLoss())
    logits = model(pixel_values=batch.arguments["pixel_values"]).logits
    assert batch.targets is not None
    picked = logits.log_softmax(1)[torch.arange(COUNT), batch.targets]
    (-picked.mean()).backward()
    for layer, value in zip(model.get_submodule(blocks), found.value.tolist(), strict=True):
        squares = [parameter.grad.square().sum() for parameter in layer.parameters() if parameter.grad is not None]
        assert value == pytest.approx(torch.stack(squares).sum().sqrt().item())
    assert (found.high > found.value).all()


def test_images_without_a_class_do_not_count() -> None:
    model, _ = built("vit")
    batch = images(model)
    assert batch.targets is not None
    known = torch.arange(COUNT) % 3 > 0
    some = ModelBatch(batch.arguments, None, torch.where(known, batch.targets, -100), batch.documents)

    def numbers(batch: ModelBatch) -> dict[str, list[float]]:
        found = diagnose_batches(model, [batch], ClassificationLoss(), DiagnosisConfig(measures=("removal",)))
        return {name: one.values for name, one in found.series.items()} | {
            f"{name} high": [estimate.high for estimate in one.estimates] for name, one in found.series.items()
        }

    expected, there = numbers(batch.select(known)), numbers(some)
    assert all(there[name] == pytest.approx(values) for name, values in expected.items())


CONFIG = DiagnosisConfig(gradient_tokens=6, run_lengths=(2,))


def diagnosed(model: Any, batch: ModelBatch) -> ModelDiagnosis:
    return diagnose_batches(model, [batch], ClassificationLoss(), CONFIG)


def test_every_measure_that_makes_sense_is_there() -> None:
    model, _ = built("mix")
    found = diagnosed(model, images(model))
    assert {
        *("block_influence", "angular_distance", "variance", "rms", "norm", "attention_share", "feed_forward_share"),
        *("removal", "removal_of_2", "attention_removal", "feed_forward_removal", "swap", "repeat"),
        *("accuracy", "accuracy_lost", "accuracy_lost_of_2", "gradient_norm", "jacobian_distance", "performance"),
        *("sigma_on_stream", "sigma_in_branch", "log10_gradient_factor"),
        *("classification_loss", "class_frequencies", "over_class_frequencies"),
        *("classification_accuracy", "most_frequent_class", "over_most_frequent_class"),
    } == found.series.keys()
    for series in found.series.values():
        assert all(estimate.interval is not None for estimate in series.estimates)
    assert found.series["gradient_norm"].unit == "nats per image and unit of weight"


def test_a_classifier_stands_beside_class_frequencies() -> None:
    model, _ = built("vit")
    batch = images(model)
    assert batch.targets is not None
    classes = Counter(batch.targets.tolist())
    losses, right = by_hand(model, batch)
    entropy = -sum(count / COUNT * math.log(count / COUNT) for count in classes.values())
    value = {name: series.values[0] for name, series in diagnosed(model, batch).series.items()}
    assert value["classification_loss"] == pytest.approx(mean(losses))
    assert value["class_frequencies"] == pytest.approx(entropy)
    assert value["over_class_frequencies"] == pytest.approx(mean(losses) - entropy)
    assert value["classification_accuracy"] == pytest.approx(mean(right))
    assert value["most_frequent_class"] == pytest.approx(max(classes.values()) / COUNT)
    assert value["over_most_frequent_class"] == pytest.approx(mean(right) - max(classes.values()) / COUNT)


def test_a_model_that_has_learned_gets_a_verdict_and_another_none() -> None:
    model, _ = built("vit")
    learned, guessing = (diagnosed(model, images(model, classes, 40)) for classes in (None, torch.arange(40) % 5))
    assert learned.has_learned
    assert any(sentence.startswith("The model has learned to tell classes apart") for sentence in learned.findings)
    assert any("it loses the most of them" in sentence for sentence in learned.findings)
    assert not guessing.has_learned
    assert guessing.dead_layers == []
    assert any("no layer gets a verdict" in sentence for sentence in guessing.findings)
    assert not any("dead weight" in sentence or "it loses" in sentence for sentence in guessing.findings)


def test_dead_weight_is_what_costs_less_than_a_share_of_the_loss_of_frequencies() -> None:
    model, _ = built("vit")
    for parameter in model.vit.layers[1].parameters():
        nn.init.zeros_(parameter)  # it adds nothing to the stream
    found = diagnosed(model, images(model))
    assert found.dead_limit == pytest.approx(0.01 * found.series["class_frequencies"].values[0])
    assert found.dead_layers == [2]
    assert found.series["accuracy_lost"].values[1] == 0


@pytest.mark.parametrize(
    ("logits", "right"),
    [
        ([0.0, 2.0, 1.0], True),
        ([2.0, 1.0, 0.0], False),
        ([1.0, 1.0, 0.0], False),
        ([1.0, 1.0, 1.0], False),
        ([math.nan, 1.0, 0.0], False),
        ([0.0, math.nan, 0.0], False),
        ([-math.inf, 1.0, 0.0], True),
    ],
)
def test_only_a_single_largest_logit_is_right(logits: list[float], right: bool) -> None:
    accuracy = ClassificationLoss.beside["accuracy"]
    batch = ModelBatch({}, None, torch.tensor([1]), torch.tensor([0]))
    found = accuracy.on(SimpleNamespace(logits=torch.tensor([logits])), batch)
    assert found.whole.tolist() == [0.0 if right else 1.0]
    assert found.harm(SimpleNamespace(logits=torch.tensor([[0.0, 1.0, 0.0]]))).tolist() == [0.0 if right else -1.0]


def test_a_changed_model_that_overflows_is_right_on_nothing() -> None:
    batch = ModelBatch({}, None, torch.tensor([1, 0]), torch.arange(2))
    whole, changed = (SimpleNamespace(logits=torch.tensor(rows)) for rows in ([[0.0, 2.0]] * 2, [[math.nan] * 2] * 2))
    assert ClassificationLoss().on(whole, batch).harm(changed).tolist() == [math.inf, math.inf]
    assert ClassificationLoss.beside["accuracy"].on(whole, batch).harm(changed).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, "needs a model with a head that gives logits"),
        (torch.zeros(COUNT, 4, dtype=torch.int64), "a target for each row"),
        (torch.full((COUNT,), 5), "classes from 0 to 4.*they go from 5 to 5"),
        (torch.full((COUNT,), -1), "or -100 where there is none"),
        (torch.full((COUNT,), -100), "no token to measure on|target"),
    ],
)
def test_targets_that_are_none_are_refused(targets: torch.Tensor | None, message: str) -> None:
    model, _ = built("vit")
    batch = images(model)
    batch = ModelBatch(batch.arguments, None, targets, batch.documents)
    with pytest.raises(InputError, match=message):
        diagnose_batches(model, [batch], ClassificationLoss(), DiagnosisConfig(measures=("removal",)))


def test_a_model_without_a_head_is_refused() -> None:
    model, _ = built("vit")
    batch = images(model)
    with pytest.raises(InputError, match="needs a model with a head"):
        diagnose_batches(model.vit, [batch], ClassificationLoss(), DiagnosisConfig(measures=("removal",)))
