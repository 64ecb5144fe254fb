"""What encoders of images have of their own: against a ViT that is written out, and against transformers'."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_tools import TINY_IMAGES, inputs_of, tiny_architecture, tiny_architecture_config
from models_reference import BLOCKS, CASES
from models_tools import assert_close_by_tensor, gradients_of, labels_of, logits_of, pixels
from models_vision_reference import vit_logits
from safetensors.torch import load_file, save_file
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import mixln
from mixln.errors import InputError
from mixln.exchange import save_stock
from mixln.models import ARCHITECTURES, PlacedPreTrainedModel
from mixln.placement import DropPath, PlacedBlock, PlacementError

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")

IMAGE_NAMES = [name for name, found in ARCHITECTURES.items() if not found.is_causal]
STOCK_CLASSES: list[Any] = [
    (ViTConfig, ViTForImageClassification),
    (ViTConfig, ViTModel),
    (DeiTConfig, DeiTForImageClassification),
    (DeiTConfig, DeiTForImageClassificationWithTeacher),
]


def vit(text: str, **changes: Any) -> PlacedPreTrainedModel:
    return tiny_architecture("vit", text, **changes)


def stock(config_class: Any, model_class: Any, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = model_class(config_class(**(TINY_IMAGES | changes))).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model


def outputs_of(model: nn.Module, images: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        output = model(pixel_values=images, **options)
    return output.logits if hasattr(output, "logits") else output.pooler_output


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("text", CASES)
def test_logits_loss_and_gradients_are_those_of_the_equations(text: str, layers: int) -> None:
    if text == "mix(post_layers=3)" and layers < 3:
        pytest.skip("more Post-LN layers than layers")
    has_branch_norm = any(name in text for name in ("sandwich", "peri", "reordered"))
    scale = None if has_branch_norm else 0.5
    model = vit(text, num_hidden_layers=layers, layer_scale_init_value=scale).double()
    images = pixels(3).double()
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    logits = vit_logits(weights, images, text, layers=layers, heads=4, patch=4)
    loss = F.cross_entropy(logits, labels_of(images))
    gradients = torch.autograd.grad(loss, list(weights.values()))
    torch.testing.assert_close(logits_of(model, images), logits.detach(), rtol=1e-8, atol=1e-8)
    assert model(pixel_values=images, labels=labels_of(images)).loss.item() == pytest.approx(loss.item(), rel=1e-6)
    found, expected = gradients_of(model, images), dict(zip(weights, gradients, strict=True))
    for name in [name for name in expected if name.endswith(("k_proj.bias", "k_norm.bias"))]:
        # a softmax does not see what all its scores have in common: most of these are 0
        torch.testing.assert_close(found.pop(name), expected.pop(name), rtol=1e-5, atol=1e-9)
    assert_close_by_tensor(found, expected, 1e-5)


@pytest.mark.parametrize("text", [text for text in BLOCKS if "gpas" not in text])
def test_scaled_embed_multiplies_the_sum_of_patches_and_positions(text: str) -> None:
    model, images = vit(f"{text}+scaled_embed").double(), pixels().double()
    expected = vit_logits(model.state_dict(), images, text, embedding_factor=32**0.5, layers=4, heads=4, patch=4)
    torch.testing.assert_close(logits_of(model, images), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("text", ["pre", "mix(alpha=0.5)", "lns"])
def test_the_mean_of_the_patches_is_of_patches_alone(text: str) -> None:
    model, images = vit(text, pooling="mean").double(), pixels().double()
    expected = vit_logits(model.state_dict(), images, text, layers=4, heads=4, patch=4, mean=True)
    torch.testing.assert_close(logits_of(model, images), expected, rtol=1e-8, atol=1e-8)
    loss = model(pixel_values=images, labels=labels_of(images)).loss
    assert loss.item() == pytest.approx(F.cross_entropy(expected, labels_of(images)).item())


@pytest.mark.parametrize(("config_class", "model_class"), STOCK_CLASSES)
def test_stock_checkpoints_open_as_pre_and_go_back(config_class: Any, model_class: Any, tmp_path: Path) -> None:
    model, images = stock(config_class, model_class), pixels()
    expected = outputs_of(model, images)
    placed, change = mixln.apply_placement(model, "pre")
    assert change.keeps_function
    assert change.added == change.removed == ()
    assert torch.equal(outputs_of(placed, images), expected)
    placed.save_pretrained(tmp_path / "ours")
    auto_class = AutoModel if model_class is ViTModel else AutoModelForImageClassification
    opened = auto_class.from_pretrained(tmp_path / "ours")
    assert type(opened) is type(placed)
    assert torch.equal(outputs_of(opened, images), expected)
    back = mixln.stock_model(opened)
    assert type(back) is model_class
    assert back.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(outputs_of(back, images), expected)


LEGACY = (
    ("layers.", "encoder.layer."),
    ("attention.o_proj", "attention.output.dense"),
    *(
        (f"attention.{short}_proj", f"attention.attention.{name}")
        for short, name in zip("qkv", ("query", "key", "value"), strict=True)
    ),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


@pytest.mark.parametrize(("config_class", "model_class"), STOCK_CLASSES)
def test_checkpoints_with_the_names_of_the_hub_open(config_class: Any, model_class: Any, tmp_path: Path) -> None:
    """As they lie there since before transformers 5."""
    model, images = stock(config_class, model_class), pixels()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for new, old in LEGACY:
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert any(".encoder.layer.0.attention.attention.query" in f".{name}" for name in tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    placed, change = mixln.apply_placement(model_class.from_pretrained(tmp_path), "pre")
    assert change.keeps_function
    assert torch.equal(outputs_of(placed, images), outputs_of(model, images))


@pytest.mark.parametrize("text", ["pre", "lns", "pre+scaled_embed", "lns+scaled_embed"])
@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_a_folder_is_exported_with_its_preparation_of_images(name: str, text: str, tmp_path: Path) -> None:
    """The learned scale goes into the matrices, the factor of the embedding into all its parts."""
    model, images = tiny_architecture(name, text, layer_scale_init_value=0.1, drop_path_rate=0.2), inputs_of(name)
    model.save_pretrained(tmp_path / "ours")
    (tmp_path / "ours" / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    exported = save_stock(tmp_path / "ours", tmp_path / "out")
    assert type(exported.model).__module__.startswith("transformers.")
    assert exported.difference <= 1e-5 * exported.largest_logit
    opened = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits_of(opened, images), logits_of(model, images), rtol=1e-4, atol=1e-5)
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_what_stock_classes_would_leave_out_is_refused(tmp_path: Path) -> None:
    for number, changes in enumerate(({"pooling": "mean"}, {"layer_scale_init_value": 0.1})):
        model = vit("pre", **changes)
        model.save_pretrained(tmp_path / str(number))
        file = tmp_path / str(number) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "vit"}))
        with pytest.raises(Exception, match="mixln placement"):
            ViTForImageClassification.from_pretrained(tmp_path / str(number))
    with pytest.raises(InputError, match="reads the mean of the patches"):
        mixln.stock_model(vit("pre", pooling="mean"))
    with pytest.raises(InputError, match="no class of transformers computes placement 'post'"):
        mixln.stock_model(vit("post"))
    with pytest.raises(InputError, match="of language models alone"):
        mixln.stock_model(vit("none"), neutral_norms=True)


def test_a_learned_scale_behind_a_branch_norm_is_not_normed_away() -> None:
    """Of all branches 0, the stream is what was put in, whatever the norms behind them add."""
    model = vit("sandwich", layer_scale_init_value=0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.zeros_(parameter)
    with torch.no_grad():
        states = model(pixel_values=pixels(), output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[4])
    drawn = vit("sandwich", layer_scale_init_value=0.5)
    drawn.initialize(0)
    assert all((value == 0.5).all() for name, value in drawn.named_parameters() if name.endswith("gamma"))


@pytest.mark.parametrize("name", IMAGE_NAMES)
@pytest.mark.parametrize("size", [12, 16, 24, (8, 20)])
def test_other_sizes_go_through_interpolated_positions(name: str, size: Any) -> None:
    height, width = size if isinstance(size, tuple) else (size, size)
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    model = tiny_architecture(name, "pre")
    expected = outputs_of(mixln.stock_model(model), images, interpolate_pos_encoding=True)
    torch.testing.assert_close(outputs_of(model, images, interpolate_pos_encoding=True), expected, rtol=1e-5, atol=1e-5)
    outputs_of(tiny_architecture(name, "mix(alpha=0.5)", pooling="mean"), images, interpolate_pos_encoding=True)
    if size != 12:
        with pytest.raises(ValueError, match="doesn't match model"):
            outputs_of(model, images)


def test_sizes_that_patches_do_not_divide_are_refused() -> None:
    model = vit("pre")
    with pytest.raises(ValueError, match="patches of 4 x 4 pixels do not divide images of 14 x 12"):
        outputs_of(model, torch.zeros(1, 3, 14, 12), interpolate_pos_encoding=True)
    for changes, reason in (
        ({"image_size": 13}, "patches of 4 x 4 pixels do not divide an image of 13 x 13"),
        ({"image_size": [12, 13]}, "do not divide an image of 12 x 13"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must be at least 0 and below 1"),
        ({"pooling": "max"}, "pooling"),
    ):
        with pytest.raises(Exception, match=reason):
            tiny_architecture_config("vit", "pre", **changes)
    with pytest.raises(ValueError, match="give pixel_values"):
        model()
    with pytest.raises(ValueError, match="reads its two tokens"):
        mixln.apply_placement(
            ARCHITECTURES["deit"].head_classes[0](tiny_architecture_config("deit", "pre", pooling="mean")), "pre"
        )


def test_a_dropped_branch_leaves_the_row_of_the_stream_as_it_is() -> None:
    """In Post-LN, N_out(x + 0); in Pre-LN, x; a kept one is divided by the probability that it is kept."""
    torch.manual_seed(0)
    block = next(
        one for one in vit("post", num_hidden_layers=1, drop_path_rate=0.0).modules() if isinstance(one, PlacedBlock)
    )
    residual, norm = block.attention_residual, block.get_submodule("post_attention_layernorm")
    x = torch.randn(64, 3, 32)
    dropped = residual(x, lambda h: h + 1, block_input=x, drop_path=DropPath(0.5), output_norm=norm)
    kept, gone = norm(x + 2 * (x + 1)), norm(x)
    rows = torch.tensor([torch.equal(row, other) for row, other in zip(dropped, gone, strict=True)])
    assert 16 < rows.sum() < 48
    torch.testing.assert_close(dropped[~rows], kept[~rows])
    path = DropPath(0.5).eval()
    assert path(x) is x
    with pytest.raises(PlacementError, match="below 1"):
        DropPath(1.0)


def test_paths_are_dropped_more_often_the_deeper_the_block_and_only_in_training() -> None:
    model, images = vit("mix(alpha=0.5)", drop_path_rate=0.3), pixels()
    paths = [one for one in model.modules() if isinstance(one, DropPath)]
    assert [round(1 - one.keep, 6) for one in paths] == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]
    expected = logits_of(vit("mix(alpha=0.5)"), images)
    assert torch.equal(logits_of(model, images), expected)
    model.train()
    torch.manual_seed(0)
    first = logits_of(model, images.repeat(8, 1, 1, 1))
    torch.manual_seed(0)
    assert torch.equal(logits_of(model, images.repeat(8, 1, 1, 1)), first)
    assert not torch.equal(first[:2], first[2:4])


@pytest.mark.parametrize("training", [True, False])
def test_blocks_that_differ_in_their_rate_share_their_compiled_code(training: bool) -> None:
    torch.compiler.reset()
    model, images = vit("pre", num_hidden_layers=12, drop_path_rate=0.3).train(training), pixels()
    counter = CompileCounter()
    for block in model.modules():
        if isinstance(block, PlacedBlock):
            block.compile(backend=counter)
    logits_of(model, images)
    # the first drops none, and a float that changes is compiled a second time, as a variable
    assert 1 <= counter.frame_count <= 3
    torch.compiler.reset()


def test_patches_tokens_and_positions_are_drawn_by_their_roles() -> None:
    config = tiny_architecture_config("deit", "pre", hidden_size=256, image_size=64, initializer_range=0.02)
    model = AutoModelForImageClassification.from_config(config).initialize(0)
    parameters = {name.removeprefix("deit.embeddings."): value for name, value in model.named_parameters()}
    for name in ("patch_embeddings.projection.weight", "cls_token", "distillation_token", "position_embeddings"):
        assert parameters[name].std().item() == pytest.approx(0.02, rel=0.15), name
    assert not parameters["patch_embeddings.projection.bias"].any()
    wide = tiny_architecture_config("deit", "pre+scaled_init", hidden_size=256, image_size=64, embedding_std=0.5)
    assert wide.initial_embedding_std == 0.5
    drawn = AutoModelForImageClassification.from_config(wide).initialize(0).deit.embeddings
    assert drawn.patch_embeddings.projection.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert drawn.position_embeddings.std().item() == pytest.approx((2 / (5 * 256)) ** 0.5, rel=0.05)


def test_the_stack_opens_from_a_classifier_and_a_classifier_from_a_stack(tmp_path: Path) -> None:
    """The pooler and the classifier are heads: a new one is drawn, and one that is not there is left out."""
    classifier, images = vit("mix(alpha=0.5)"), pixels()
    classifier.save_pretrained(tmp_path / "classifier")
    stack: Any = AutoModel.from_pretrained(tmp_path / "classifier")
    with torch.no_grad():
        states = stack(images).last_hidden_state
        assert torch.equal(states, classifier.base_model(images).last_hidden_state)
    assert stack.pooler.dense.weight.std().item() == pytest.approx(0.15, rel=0.2)
    stack.save_pretrained(tmp_path / "stack")
    again: Any = AutoModelForImageClassification.from_pretrained(tmp_path / "stack")
    with torch.no_grad():
        assert torch.equal(again.vit(images).last_hidden_state, states)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = type(classifier.base_model)(classifier.config, add_pooling_layer=False)
    assert bare.pooler is None


def test_a_stack_without_a_pooler_is_placed_and_goes_back_without_one() -> None:
    torch.manual_seed(0)
    model, images = ViTModel(ViTConfig(**TINY_IMAGES), add_pooling_layer=False).eval(), pixels()
    placed, change = mixln.apply_placement(model, "pre")
    assert (change.keeps_function, change.added, change.removed) == (True, (), ())
    with torch.no_grad():
        assert torch.equal(placed(images).last_hidden_state, model(images).last_hidden_state)
    assert mixln.stock_model(placed).pooler is None


def test_two_classifiers_of_one_config_are_told_apart_by_what_the_folder_names(tmp_path: Path) -> None:
    config = tiny_architecture_config("deit", "mix(alpha=0.5)")
    teacher = ARCHITECTURES["deit"].head_classes[0]
    for built in (teacher, ARCHITECTURES["deit"].whole_class):
        built(config).initialize(0).save_pretrained(tmp_path / built.__name__)
        assert type(AutoModelForImageClassification.from_pretrained(tmp_path / built.__name__)) is built
    assert type(AutoModelForImageClassification.from_config(config)) is ARCHITECTURES["deit"].whole_class
