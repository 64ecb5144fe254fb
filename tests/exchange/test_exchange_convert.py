"""Conversion of checkpoints in the layout of the published training code."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_reference import CASES, Shape, llama_logits
from models_tools import VOCABULARY, logits_of, tiny_model, token_ids
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mixln import MixLNLlamaForCausalLM, PlacementError
from mixln.errors import InputError
from mixln.exchange.convert import convert_published, save_converted

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"

CONFIG: dict[str, Any] = {
    "architectures": ["LLaMAForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "vocab_size": VOCABULARY,
    "max_sequence_length": 64,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "pad_token_id": -1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "use_cache": True,
}
SHAPE = Shape(layers=4, heads=4, key_value_heads=4)


def published_weights(placement: str, **changes: Any) -> dict[str, torch.Tensor]:
    model = tiny_model(placement, num_key_value_heads=4, **changes)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def write_folder(
    folder: Path, weights: dict[str, torch.Tensor], file: str = "model.safetensors", **changes: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    if file.endswith(".safetensors"):
        save_file(weights, folder / file)
    else:
        torch.save(weights, folder / file)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published checkpoint of `mix(post_layers=1)`."""
    return write_folder(tmp_path / "published", published_weights("mix(post_layers=1)"))


def inverse_frequencies(theta: float = 10_000.0) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, 8, 2).float() / 8)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(("name", "placement"), [("lns", "lns"), ("mix_8_2", "mix(post_layers=2)"), ("mix_8_2", "mix")])
def test_golden_checkpoints_give_the_published_codes_results(name: str, placement: str, tmp_path: Path) -> None:
    source = GOLDEN / name
    if not source.is_dir():
        pytest.skip(f"the golden files are not on this machine ({source})")
    save_converted(source, tmp_path / "out", placement)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(model, MixLNLlamaForCausalLM)
    expected = np.load(source / "expected.npz")
    ids = torch.from_numpy(expected["ids"])
    output = model(input_ids=ids, labels=ids)
    np.testing.assert_allclose(output.logits.detach().numpy(), expected["logits"], rtol=0, atol=1e-4)
    assert output.loss.item() == pytest.approx(expected["loss"].item(), abs=1e-5)
    output.loss.backward()
    norms = [
        sum(
            parameter.grad.double().pow(2).sum().item()
            for parameter in layer.parameters()
            if parameter.grad is not None
        )
        ** 0.5
        for layer in model.model.layers
    ]
    np.testing.assert_allclose(norms, expected["layer_grad_norm"], rtol=1e-3)


def test_a_golden_checkpoint_of_mix_does_not_pass_for_another_placement() -> None:
    if not GOLDEN.is_dir():
        pytest.skip(f"the golden files are not on this machine ({GOLDEN})")
    with pytest.raises(InputError, match=r"model\.layers\.2\.post_feedforward_layernorm.weight"):
        convert_published(GOLDEN / "mix_8_2", "mix(post_layers=3)")


@pytest.mark.parametrize("text", CASES)
def test_a_published_layout_of_each_scheme_gives_the_equations_logits(text: str, tmp_path: Path) -> None:
    weights = published_weights(text)
    rotary = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": inverse_frequencies() for i in range(4)}
    source = write_folder(tmp_path / "published", weights | rotary, "pytorch_model.bin")
    converted = save_converted(source, tmp_path / "out", text)
    ids = token_ids()
    expected = llama_logits(weights, ids, SHAPE, text)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(loaded, MixLNLlamaForCausalLM)
    assert loaded.config.placement == converted.config.placement
    for model in (converted, loaded):
        assert not model.training
        torch.testing.assert_close(logits_of(model, ids), expected, rtol=1e-4, atol=1e-4)
    assert not any("rotary" in name for name in load_file(tmp_path / "out" / "model.safetensors"))


def write_index(folder: Path, parts: dict[str, dict[str, torch.Tensor]], base: str) -> None:
    weight_map = {name: file for file, tensors in parts.items() for name in tensors}
    (folder / f"{base}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("base", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_put_together_by_their_index(base: str, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, stem, suffix = sorted(weights), *base.split(".")
    parts = {
        f"{stem}-{i + 1:05}-of-00003.{suffix}": {name: weights[name].contiguous() for name in names[i::3]}
        for i in range(3)
    }
    for file, tensors in parts.items():
        write_folder(folder, tensors, file)
    write_index(folder, parts, base)
    ids = token_ids()
    expected = llama_logits(weights, ids, SHAPE, "mix")
    torch.testing.assert_close(logits_of(convert_published(folder, "mix"), ids), expected, rtol=1e-4, atol=1e-4)

    lost = sorted(parts)[1]
    (folder / lost).unlink()
    with pytest.raises(InputError, match=f"{lost} does not exist, although the index names it"):
        convert_published(folder, "mix")
    for bad in ("{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3, "b": "x"}}'):
        (folder / f"{base}.index.json").write_text(bad)
        with pytest.raises(InputError, match=r"index.json is damaged"):
            convert_published(folder, "mix")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_bfloat16_weights_stay_bfloat16(file: str, tmp_path: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in published_weights("lns").items()}
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": inverse_frequencies().bfloat16()}
    source = write_folder(tmp_path / "published", weights | rotary, file)
    model = save_converted(source, tmp_path / "out", "lns")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    # the rotary frequencies are the config's own, unrounded
    torch.testing.assert_close(model.model.rotary_emb.get_buffer("inv_freq"), inverse_frequencies())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(logits_of(loaded, token_ids()), logits_of(model, token_ids()))


def test_frequencies_of_another_theta_are_an_error(tmp_path: Path) -> None:
    weights = published_weights("pre")
    name = "model.layers.2.self_attn.rotary_emb.inv_freq"
    source = write_folder(tmp_path / "published", weights | {name: inverse_frequencies(500_000.0)})
    with pytest.raises(InputError, match=rf"{name} does not agree with rope_theta=10000 and head size 8"):
        convert_published(source, "pre")
    edit_config(source, rope_theta=500_000.0)
    model, ids = convert_published(source, "pre"), token_ids()
    expected = llama_logits(weights, ids, Shape(4, 4, 4, theta=500_000.0), "pre")
    torch.testing.assert_close(logits_of(model, ids), expected, rtol=1e-4, atol=1e-4)
    write_folder(source, weights | {name: inverse_frequencies()[:2].clone()})
    with pytest.raises(InputError, match="does not agree with rope_theta"):
        convert_published(source, "pre")


def test_grouped_queries_and_another_eps_are_taken_from_the_config(tmp_path: Path) -> None:
    weights = dict(tiny_model("post", num_key_value_heads=2).state_dict())
    source = write_folder(tmp_path / "published", weights, num_key_value_heads=2, rms_norm_eps=0.01)
    ids = token_ids()
    expected = llama_logits(weights, ids, Shape(4, 4, 2, eps=0.01), "post")
    torch.testing.assert_close(logits_of(convert_published(source, "post"), ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stored", [True, False])
def test_tied_heads_are_tied_whether_or_not_both_are_stored(stored: bool, tmp_path: Path) -> None:
    weights = published_weights("post", tie_word_embeddings=True)
    if not stored:
        weights.pop("lm_head.weight")
    source = write_folder(tmp_path / "published", weights, "pytorch_model.bin", tie_word_embeddings=True)
    save_converted(source, tmp_path / "out", "post")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(model, MixLNLlamaForCausalLM)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = token_ids()
    torch.testing.assert_close(logits_of(model, ids), llama_logits(weights, ids, SHAPE, "post"), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_the_placement_is_listed_in_full(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    weights.pop("model.norm.weight")
    weights["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
    weights["stray"] = torch.zeros(2)
    weights["model.layers.2.mlp.down_proj.weight"] = torch.zeros(48, 32)
    write_folder(folder, weights)
    with pytest.raises(InputError) as caught:
        convert_published(folder, "mix(post_layers=1)")
    message = str(caught.value)
    for part in (
        str(folder),
        "'mix(post_layers=1)'",
        "missing (2): model.layers.1.mlp.up_proj.weight, model.norm.weight",
        "left over (2): model.layers.9.mlp.up_proj.weight, stray",
        "of the wrong shape (1): model.layers.2.mlp.down_proj.weight is (48, 32), should be (32, 48)",
        "state another `placement`",
    ):
        assert part in message


@pytest.mark.parametrize("placement", ["pre", "post", "lns", "sandwich", "deepnorm", "mix(post_layers=2)"])
def test_another_placement_than_the_checkpoints_is_refused(placement: str, folder: Path) -> None:
    with pytest.raises(InputError, match=r"Parameters (missing|left over) \(\d+\): model.layers"):
        convert_published(folder, placement)


@pytest.mark.parametrize(
    ("placement", "message"),
    [("prre", "Did you mean 'pre'"), ("mix(alpha=2)", "alpha=2"), ("", "''"), ("mix(post_layers=5)", "has 4 layers")],
)
def test_a_placement_that_there_is_not_is_refused(placement: str, message: str, folder: Path) -> None:
    with pytest.raises((PlacementError, InputError), match=message):
        convert_published(folder, placement)


def test_every_way_to_truncate_or_damage_weights_is_an_input_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:4], whole[:200], whole[:-100], b"\xff" * 64, whole + b"0", b"\0" * 8 + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"model.safetensors is damaged"):
            convert_published(folder, "mix")
    path.unlink()
    weights = published_weights("mix(post_layers=1)")
    write_folder(folder, weights, "pytorch_model.bin")
    path = folder / "pytorch_model.bin"
    whole = path.read_bytes()
    for damaged in (b"", whole[:4], whole[: len(whole) // 2], whole[:-100], b"\xff" * 64, b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"pytorch_model.bin is damaged"):
            convert_published(folder, "mix")


class Explosive:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(how: str, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    source = write_folder(tmp_path / "published", {}, "pytorch_model.bin")
    content = {"model.norm.weight": torch.zeros(2), "more": Explosive(target)}
    if how == "torch":
        torch.save(content, source / "pytorch_model.bin")
    else:
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"pytorch_model.bin is damaged, or holds more than tensors"):
        convert_published(source, "pre")
    assert not target.exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}, torch.zeros(3)])
def test_a_file_that_is_no_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "published", content, "pytorch_model.bin")
    with pytest.raises(InputError, match="does not hold a state dict"):
        convert_published(source, "pre")


def test_without_weights_there_is_an_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has neither model"):
        convert_published(folder, "mix")


BAD_CONFIGS: dict[str, tuple[str, str]] = {
    "garbage": ("{ hidden", "cannot be read"),
    "empty": ("", "cannot be read"),
    "a list": ("[1, 2]", "does not hold a JSON object"),
    "not a Llama": (json.dumps(CONFIG | {"model_type": "gpt2"}), "model_type 'gpt2'"),
    "converted already": (json.dumps(CONFIG | {"model_type": "mixln_llama"}), "needs no conversion"),
    "lacking fields": (
        json.dumps({name: value for name, value in CONFIG.items() if name not in ("vocab_size", "hidden_size")}),
        "lacks vocab_size, hidden_size",
    ),
    "heads that do not divide": (json.dumps(CONFIG | {"num_attention_heads": 5}), "attention heads"),
    "key-value heads that do not divide": (json.dumps(CONFIG | {"num_key_value_heads": 3}), "num_key_value_heads (3)"),
    "no heads": (json.dumps(CONFIG | {"num_attention_heads": 0}), "config.json"),
    "a text for a size": (json.dumps(CONFIG | {"hidden_size": "32"}), "hidden_size"),
    "a word for theta": (json.dumps(CONFIG | {"rope_theta": "big"}), "config.json"),
    "a word for the padding": (json.dumps(CONFIG | {"pad_token_id": "none"}), "config.json"),
    "null for the layers": (json.dumps(CONFIG | {"num_hidden_layers": None}), "num_hidden_layers"),
    "an activation that there is not": (json.dumps(CONFIG | {"hidden_act": "sillu"}), "sillu"),
    "a negative size": (json.dumps(CONFIG | {"intermediate_size": -48}), "config.json"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_cannot_be_used_is_an_input_error(case: str, folder: Path) -> None:
    text, message = BAD_CONFIGS[case]
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        convert_published(folder, "mix")
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_missing_folders_and_configs_are_input_errors(folder: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        convert_published(folder / "nowhere", "mix")
    with pytest.raises(InputError, match="is not a folder"):
        convert_published(folder / "config.json", "mix")
    (folder / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"config.json cannot be read"):
        convert_published(folder, "mix")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json does not exist"):
        convert_published(folder, "mix")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_output_that_holds_something_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    for place in (out, out / "precious", folder):
        before = contents(tmp_path)
        with pytest.raises(InputError, match="exists already"):
            save_converted(folder, place, "mix")
        assert contents(tmp_path) == before


def test_an_empty_output_folder_will_do_and_nothing_temporary_stays(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    (tmp_path / "out").mkdir()
    save_converted(folder, tmp_path / "out", "mix")
    assert {path.name for path in tmp_path.iterdir()} == {"published", "out"}
    assert contents(folder) == before
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_failed_conversion_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="does not fit"):
        save_converted(folder, tmp_path / "out", "post")
    assert {path.name for path in tmp_path.iterdir()} == {"published"}

    def full(self: MixLNLlamaForCausalLM, save_directory: Path, **_: object) -> None:
        del self
        assert save_directory.is_dir()
        (save_directory / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MixLNLlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(InputError, match=r"could not be written .*No space left"):
        save_converted(folder, tmp_path / "out", "mix")
    assert {path.name for path in tmp_path.iterdir()} == {"published"}


def test_a_place_that_cannot_be_written_is_an_input_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError):
        save_converted(folder, tmp_path / "file" / "out", "mix")


def test_tokenizer_files_come_along_and_weights_and_training_state_do_not(folder: Path, tmp_path: Path) -> None:
    companions = [
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "spiece.model",
    ]
    companions += ["vocab.json", "merges.txt", "generation_config.json"]
    for name in companions:
        (folder / name).write_text(json.dumps({"from": name}))
    for name in ("optimizer.pt", "training_args.bin", "README.md"):
        (folder / name).write_text("x")
    save_converted(folder, tmp_path / "out", "mix")
    written = contents(tmp_path / "out")
    assert written.keys() == {*companions, "config.json", "model.safetensors"}
    for name in companions:
        assert written[name] == (folder / name).read_bytes()
