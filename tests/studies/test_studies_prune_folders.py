"""Folders of pruned models: of the class that the source is of, whole, and computing what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pruned_models import CASES, Case, first_output, without
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.studies.prune import find_prunable_stack
from mixln.studies.pruned_folder import open_for_pruning, prune_model
from mixln.studies.pruning_request import PruningRequest

_FAST = {
    *("bert classes", "bert masked", "llama classes", "distilbert", "gpt neox japanese", "qwen3 moe", "qwen2 windows"),
    *("modernbert", "vit", "llava, vision_tower", "qwen2.5 vl", "gpt2 divided by depth", "gpt neox japanese, its last"),
}
_BY_SPEED = [pytest.param(name, marks=[] if name in _FAST else [pytest.mark.slow], id=name) for name in CASES]


def prune(source: Path, out: Path, removed: tuple[int, ...], stack: str | None = None) -> list[str]:
    blocks = find_prunable_stack(open_for_pruning(str(source)), stack)
    request = PruningRequest(source=str(source), layers=tuple(index + 1 for index in removed))
    return prune_model(request, blocks, removed, out).left_out


@pytest.mark.parametrize("name", _BY_SPEED)
def test_a_pruned_folder_is_of_its_class_and_computes_what_the_model_without_the_layers_does(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    whole = case.build()
    whole.save_pretrained(tmp_path / "whole")
    if case.refused is not None:
        with pytest.raises(InputError, match=re.escape(case.refused)) as caught:
            prune(tmp_path / "whole", tmp_path / "out", case.removed, case.stack)
        assert len(str(caught.value).splitlines()) == 1
        assert not list(tmp_path.glob("*out*"))
        return
    prune(tmp_path / "whole", tmp_path / "out", case.removed, case.stack)
    model, info = getattr(transformers, case.model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model) is type(whole)
    _same_rest(case, whole, model)
    if "sight" not in name:  # its inputs are more than this table can say
        expected = first_output(without(whole, case.stack, case.removed), case.inputs)
        torch.testing.assert_close(first_output(model.eval(), case.inputs), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(first_output(whole, case.inputs), expected, rtol=1e-3)
    if model.can_generate() and case.model != "XLNetLMHeadModel":
        _generates_as_without_a_cache(model)


def _same_rest(case: Case, whole: PreTrainedModel, model: Any) -> None:
    blocks: Any = whole.get_submodule(case.stack)
    kept = [index for index in range(len(blocks)) if index not in case.removed]
    prefix = re.escape(case.stack)
    expected = {}
    for name, tensor in whole.state_dict().items():
        if match := re.fullmatch(rf"({prefix}\.)(\d+)(\..*)", name):
            if int(match[2]) in kept:
                expected[f"{match[1]}{kept.index(int(match[2]))}{match[3]}"] = tensor
        else:
            expected[name] = tensor
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if tensor.shape == expected[name].shape:
            assert torch.equal(tensor, expected[name]), name
        else:
            assert tensor.numel() * len(blocks) == expected[name].numel() * len(kept), name


def _generates_as_without_a_cache(model: Any) -> None:
    tokens = torch.tensor([[7, 12, 30, 9, 41]])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached, uncached = (model.generate(tokens, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, uncached)


@pytest.fixture
def folder(data: PreparedData, tmp_path: Path) -> Path:
    """A sentence encoder's folder, with everything that may lie in one."""
    folder = tmp_path / "whole"
    config = BertConfig(
        vocab_size=len(data.tokenizer),
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=8,
        id2label={0: "yes", 1: "no"},
    )
    BertForMaskedLM(config).save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)
    own = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**own, "a_field_of_ours": {"kept": True}}))
    texts = {
        "modules.json": json.dumps([{"path": "", "type": "a"}, {"path": "1_Pooling"}, {"path": "2_Dense"}]),
        "1_Pooling/config.json": "{}",
        "2_Dense/config.json": "{}",
        "2_Dense/model.safetensors": "weights of a module",
        "README.md": "# It",
        "LICENSE": "free",
        "preprocessor_config.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "own_code.py": "raise SystemExit",
        "pytorch_model.bin": "stale",
        "model.gguf": "stale",
        "onnx/model.onnx": "stale",
        "onnx/config.json": "{}",
        "checkpoint-5/trainer_state.json": "{}",
        "healing.json": "{}",
        ".git/config": "no",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_what_stood_beside_the_model_goes_with_it_but_stale_weights(folder: Path, tmp_path: Path) -> None:
    left_out = prune(folder, tmp_path / "out", (1,))
    stale = ["checkpoint-5/", "healing.json", "model.gguf", "onnx/", "pytorch_model.bin"]
    assert sorted(left_out) == stale
    assert sorted(json.loads((tmp_path / "out" / "pruning.json").read_text())["left_out"]) == stale
    files = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not str(path.relative_to(folder)).startswith((".git", *stale))
    }
    out = tmp_path / "out"
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == files | {"pruning.json"}
    for name in files - {"config.json", "model.safetensors"}:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    before, after = (json.loads((place / "config.json").read_text()) for place in (folder, out))
    assert after == {**before, "num_hidden_layers": 2}
    assert AutoTokenizer.from_pretrained(out)("a b").input_ids == AutoTokenizer.from_pretrained(folder)("a b").input_ids


def test_each_tensor_keeps_its_precision_and_what_the_class_does_not_read_stays(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    further: dict[str, Any] = {"num_nextn_predict_layers": 1}
    model = LlamaForCausalLM._from_config(LlamaConfig(**sizes, num_attention_heads=4, **further), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "whole")
    file = tmp_path / "whole" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}  # the file is written anew
    tensors["model.layers.2.input_layernorm.weight"] = torch.full((32,), 1 / 3)
    # a layer that only predicts further tokens
    tensors["model.layers.4.input_layernorm.weight"] = torch.full((32,), 7.0)
    save_file(tensors, file, metadata={"format": "pt"})
    prune(tmp_path / "whole", tmp_path / "out", (1,))
    found = load_file(tmp_path / "out" / "model.safetensors")
    renamed = {re.sub(r"layers\.(\d)", lambda match: f"layers.{_moved(int(match[1]))}", name): name for name in tensors}
    assert found.keys() == {new for new, old in renamed.items() if "layers.1." not in old}
    for name, tensor in found.items():
        assert tensor.dtype == tensors[renamed[name]].dtype
        assert torch.equal(tensor, tensors[renamed[name]])
    assert found["model.layers.1.input_layernorm.weight"].dtype == torch.float32


def test_positions_that_grew_while_the_cost_was_measured_are_no_other_model(tmp_path: Path) -> None:
    """This model computes its positions, as far as the longest text that it has run."""
    sizes: dict[str, Any] = {"vocab_size": 61, "max_position_embeddings": 16, "d_model": 32, "ffn_dim": 48}
    config = transformers.XGLMConfig(**sizes, num_layers=4, attention_heads=4)
    transformers.XGLMForCausalLM(config).save_pretrained(tmp_path / "whole")
    blocks = find_prunable_stack(open_for_pruning(str(tmp_path / "whole")), None)
    model: Any = blocks.model
    positions = model.model.embed_positions
    before = positions.weights.shape
    row = torch.arange(4, 44)[None]
    with torch.no_grad():
        model(input_ids=row)
        assert positions.weights.shape != before
        prune_model(PruningRequest(source=str(tmp_path / "whole"), layers=(2,)), blocks, (1,), tmp_path / "out")
        del model.model.layers[1]
        expected = model(input_ids=row, use_cache=False).logits
        pruned = transformers.XGLMForCausalLM.from_pretrained(tmp_path / "out")
        torch.testing.assert_close(pruned(input_ids=row, use_cache=False).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_rule_by_place_is_noticed_in_every_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """Attention divided by the number of the layer: no config says that of a layer that has moved."""
    sizes: dict[str, Any] = {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 4, "n_head": 4}
    torch.manual_seed(0)
    config = transformers.ImageGPTConfig(**sizes, scale_attn_by_inverse_layer_idx=True, initializer_range=0.15)
    model = transformers.ImageGPTForCausalImageModeling(config)
    torch.nn.Module.to(model, dtype)
    model.save_pretrained(tmp_path / "model")
    for layer in (0, 1):
        with pytest.raises(InputError, match="depend on their place"):
            prune(tmp_path / "model", tmp_path / "out", (layer,))


def _moved(index: int) -> int | str:
    return "gone" if index == 1 else index - (index > 1)


def test_a_model_in_several_files_and_in_pickles_is_pruned(tmp_path: Path) -> None:
    whole = CASES["llama classes"].build()
    whole.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    whole.save_pretrained(tmp_path / "pickled")
    torch.save(whole.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    expected = first_output(without(whole, "model.layers", [1]), CASES["llama classes"].inputs)
    for name in ("sharded", "pickled"):
        prune(tmp_path / name, tmp_path / f"{name}-out", (1,))
        model = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path / f"{name}-out").eval()
        torch.testing.assert_close(first_output(model, CASES["llama classes"].inputs), expected)
    assert not (tmp_path / "pickled-out" / "pytorch_model.bin").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": None}, "names no class"),
        ({"architectures": ["BertModel", "BertForMaskedLM"]}, "names BertModel, BertForMaskedLM"),
        ({"architectures": ["BertForEverything"]}, "which transformers"),
        ({"architectures": ["BertForSequenceClassification"]}, "would be random numbers: bert.pooler"),
        ({"architectures": ["pipeline"]}, "which transformers"),
        ({"quantization_config": {"quant_method": "fp8"}}, "is quantised"),
    ],
)
def test_a_folder_that_is_not_what_it_says_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    own = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**own, **change}))
    with pytest.raises(InputError, match=message) as caught:
        prune(folder, tmp_path / "out", (1,))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="Merge it first"):
        prune(folder, tmp_path / "out", (1,))
