"""timm's `VisionTransformer` under placements, and weights that go both ways."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from architecture_tools import tiny_architecture
from models_reference import CASES
from models_tools import assert_close_by_tensor, labels_of, logits_of, pixels, randomise_gains
from torch import nn
from torch.nn import functional as F
from transformers import ViTForImageClassification

import mixln
from mixln import PlacementError
from mixln.errors import InputError
from mixln.exchange.timm import from_timm, timm_block_fn, to_timm
from mixln.placement import PlacedBlock

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs mixln[vision]"),
    pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning"),
]

BEYOND = ("peri", "none", "hybrid", "per_head=false", "dyt", "derf")
IN_BLOCKS = [text for text in CASES if not any(part in text for part in BEYOND)]


def timm_vit(**options: Any) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    sizes: dict[str, Any] = {
        "img_size": 12,
        "patch_size": 4,
        "num_classes": 5,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 4,
    }
    torch.manual_seed(0)
    model = VisionTransformer(**(sizes | {"mlp_ratio": 1.5, "norm_layer": partial(nn.LayerNorm, eps=1e-6)} | options))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(len(name)))
    randomise_gains(model)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.1, "drop_path_rate": 0.2},
        {"global_pool": "avg", "fc_norm": False},
        {"qk_norm": True},
        {"qkv_bias": False},
        {"act_layer": nn.SiLU},
        {"img_size": (12, 20)},
    ],
)
def test_timms_own_model_is_taken_over_and_given_back(options: dict[str, Any]) -> None:
    """Logits to 1e-5, gradients to 1e-4, and the very weights."""
    model = timm_vit(**options)
    height, width = model.patch_embed.img_size
    images = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    placed = from_timm(model)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(placed, images), model(images), rtol=1e-5, atol=1e-5)
    for one in (model, placed):
        one.train().zero_grad()
        for module in one.modules():
            if "DropPath" in type(module).__name__:
                module.eval()
    F.cross_entropy(model(images), labels_of(images)).backward()
    placed(pixel_values=images, labels=labels_of(images)).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    again = to_timm(placed)
    state = again.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert again.training
    # our gradients by timm's names: those of a model whose weights they are
    holder = copy.deepcopy(placed)
    with torch.no_grad():
        for own, copied in zip(placed.parameters(), holder.parameters(), strict=True):
            assert own.grad is not None
            copied.copy_(own.grad)
    found = dict(to_timm(holder).named_parameters())
    # of a key's bias, which the softmax does not see, the gradient is 0 and what rounding makes of it
    for name in [name for name in found if name.endswith(("qkv.bias", "k_norm.bias"))]:
        torch.testing.assert_close(found.pop(name), expected.pop(name), rtol=1e-4, atol=1e-6)
    assert_close_by_tensor(cast(Any, found), cast(Any, expected), 1e-4)


@pytest.mark.parametrize("text", IN_BLOCKS)
def test_a_placed_model_of_timm_is_our_vit(text: str) -> None:
    """Built by timm with `block_fn`, and from our model: the same logits, and the same model again."""
    images = pixels()
    model = timm_vit(block_fn=timm_block_fn(text, 4), drop_path_rate=0.1, init_values=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("residual_scale") or "gate" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    placed = from_timm(model)
    assert placed.config.placement == str(mixln.Placement.parse(text))
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(logits_of(placed, images), expected, rtol=1e-5, atol=1e-5)
        own: Any = tiny_architecture("vit", text, layer_scale_init_value=0.1)
        made = to_timm(own)
        torch.testing.assert_close(made(images), logits_of(own, images), rtol=1e-5, atol=1e-5)
    back = from_timm(made)
    assert all(torch.equal(back.get_parameter(name), value) for name, value in own.named_parameters())


def test_placements_differ_in_timm_too() -> None:
    images = pixels()
    with torch.no_grad():
        plain, mixed = timm_vit()(images), timm_vit(block_fn=timm_block_fn("mix(alpha=0.5)", 4))(images)
        same = timm_vit(block_fn=timm_block_fn("pre", 4))
        same.load_state_dict(timm_vit().state_dict())
        assert torch.equal(same(images), plain)
    assert not torch.allclose(plain, mixed, rtol=1e-2)


def test_registered_models_train_in_scripts_of_timm() -> None:
    """`create_model`, timm's optimiser and EMA, and pickling, as its train.py has them."""
    import timm
    from timm.models import register_model
    from timm.optim._optim_factory import create_optimizer_v2
    from timm.utils.model_ema import ModelEmaV3

    sizes: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "num_classes": 3,
    }
    torch.manual_seed(0)

    @register_model
    def vit_tiny_mix(pretrained: bool = False, **options: Any) -> Any:
        block_fn = timm_block_fn("mix(alpha=0.5)", 4)
        return timm.create_model("vit_tiny_patch16_224", pretrained=pretrained, block_fn=block_fn, **options)

    assert callable(vit_tiny_mix)
    model = timm.create_model("vit_tiny_mix", drop_path_rate=0.1, **sizes)
    assert sum(isinstance(block, PlacedBlock) for block in model.modules()) == 4
    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05)
    averaged = ModelEmaV3(model, decay=0.5)
    images, labels = pixels(12, 16), torch.arange(12) % 3
    losses: list[float] = []
    for _ in range(30):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averaged.update(model)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    again = pickle.loads(pickle.dumps(model.eval()))
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_deepnorm_draws_its_matrices_by_its_own_rule() -> None:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 128,
        "depth": 4,
        "num_heads": 2,
        "num_classes": 3,
    }
    block: Any = VisionTransformer(**sizes, block_fn=timm_block_fn("deepnorm", 4)).blocks[1]
    gain = (8 * 4) ** -0.25
    query, key, value = block.attn.qkv.weight.chunk(3)
    for matrix, expected in ((query, 1.0), (key, 1.0), (value, gain), (block.mlp.fc1.weight, gain)):
        std = expected * (2 / sum(matrix.shape)) ** 0.5
        assert matrix.std().item() == pytest.approx(std, rel=0.05)
    plain: Any = VisionTransformer(**sizes, block_fn=timm_block_fn("post", 4)).blocks[1]
    assert plain.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_weights_of_timm_go_to_stock_transformers(tmp_path: Path) -> None:
    model = timm_vit()
    stock = mixln.stock_model(from_timm(model))
    assert type(stock) is ViTForImageClassification
    stock.save_pretrained(tmp_path)
    opened, images = ViTForImageClassification.from_pretrained(tmp_path), pixels()
    with torch.no_grad():
        torch.testing.assert_close(logits_of(opened, images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["peri", "none", "pre+scaled_embed", "pre+scaled_init", "pre+dyt"])
def test_what_lies_outside_of_the_blocks_is_refused(text: str) -> None:
    with pytest.raises(PlacementError, match="lies outside of the blocks"):
        timm_block_fn(text, 4)


@pytest.mark.parametrize("text", ["hybrid", "pre+qk_norm(per_head=false)"])
def test_norms_that_timms_attention_has_no_place_for_are_refused(text: str) -> None:
    with pytest.raises(PlacementError, match="timm's attention norms query and key of each head"):
        timm_vit(block_fn=timm_block_fn(text, 4))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "no class token"),
        ({"reg_tokens": 2}, "register tokens"),
        ({"no_embed_class": True}, "no learned positions"),
        ({"pre_norm": True}, "a norm in front of the blocks"),
        ({"global_pool": "avg"}, "a norm behind the pooling"),
        ({"global_pool": "max", "fc_norm": False}, "a head that reads 'max'"),
        ({"patch_drop_rate": 0.1}, "dropped patches"),
        ({"num_classes": 0}, "no classes"),
        ({"drop_rate": 0.1}, "dropout before the head"),
        ({"act_layer": nn.Tanh}, "no activation like Tanh"),
        ({"scale_attn_norm": True}, "no counterpart of blocks"),
    ],
)
def test_models_with_other_parts_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        from_timm(timm_vit(**options))


def test_other_mistakes_are_named() -> None:
    from timm.models.vision_transformer import ResPostBlock

    with pytest.raises(InputError, match="the blocks of this VisionTransformer are of ResPostBlock"):
        from_timm(timm_vit(block_fn=ResPostBlock))
    with pytest.raises(PlacementError, match="made for 3 blocks, and timm builds more"):
        timm_vit(block_fn=timm_block_fn("pre", 3))
    with pytest.raises(PlacementError, match=r"write `\+qk_norm`"):
        timm_vit(block_fn=timm_block_fn("pre", 4), qk_norm=True)
    with pytest.raises(InputError, match="Linear is no VisionTransformer"):
        from_timm(nn.Linear(2, 2))
    model: Any = tiny_architecture("vit", "pre").base_model
    with pytest.raises(InputError, match="is no MixLNViTForImageClassification"):
        to_timm(model)
    shorter = timm_vit(block_fn=timm_block_fn("mix(alpha=0.5)", 4))
    shorter.blocks = shorter.blocks[:2]
    with pytest.raises(InputError, match=r"no longer mix\(alpha=0.5\)"):
        from_timm(shorter)
    changed = timm_vit()
    changed.pos_drop = nn.Threshold(0.0, 0.0)
    with pytest.raises(InputError, match="logits of both models differ"):
        from_timm(changed)
