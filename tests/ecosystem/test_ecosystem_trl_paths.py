"""Every trainer of TRL on a folder's path: what it opens, its reference, what it writes, and who opens that again.

A model of another placement opens from the same folder without an error, since most placements have parameters of the
same names. So logits are compared, not names.
"""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from ecosystem_tools import build, grown, load, logits_of
from ecosystem_trl import OLD_TRL, Make, dpo, grpo, kto, reward, rloo, sft
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

import mixln
from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.exchange.self_contained import save_self_contained
from mixln.models import language_models
from mixln.models.load import load_whole_model
from mixln.models.stack import PlacedWithHead
from mixln.report.depth_report import DepthReport

pytest.importorskip("trl", reason="needs mixln[sft]")

PLACEMENTS = ["pre", "mix(alpha=0.5)", "lns", "none"]
TRAINERS = [sft, dpo, kto, grpo, rloo, reward]
WITH_REFERENCE = [dpo, kto, grpo, rloo]
Folders = Callable[..., Path]


def states_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What a model computes below its head: a reward model's head is drawn anew."""
    with torch.no_grad():
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def run(make: Make, folder: Path, out: Path, **more: Any) -> Any:
    """A trainer that was made from a path and has trained."""
    torch.manual_seed(3)
    trainer = make(str(folder), None, out, **more)
    trainer.train()
    return trainer


def run_python(code: str, *arguments: object) -> None:
    """Run code in a process of its own, in which nothing has been imported."""
    called = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )
    assert called.returncode == 0, called.stderr[-3000:]


def model_of(trainer: Any) -> Any:
    return trainer.accelerator.unwrap_model(trainer.model).eval()


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def ids(data: PreparedData) -> torch.Tensor:
    return torch.randint(len(data.tokenizer), (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("make", TRAINERS)
def test_a_placement_is_opened_trained_written_and_opened_again(
    make: Make, placement: str, folders: Folders, ids: torch.Tensor, tmp_path: Path
) -> None:
    folder = folders(placement)
    start = load(folder).eval()
    torch.manual_seed(3)
    trainer = make(str(folder), None, tmp_path)

    opened = model_of(trainer)
    assert isinstance(opened, PlacedWithHead)
    assert opened.config.placement == placement
    assert opened.dtype == torch.float32
    assert close(states_of(opened, ids), states_of(start, ids))
    if make is not reward:
        assert close(logits_of(opened, ids), logits_of(start, ids))

    reference = getattr(trainer, "ref_model", None)
    assert (reference is not None) == (make in WITH_REFERENCE)
    if reference is not None:
        assert reference is not opened
        assert reference.config.placement == placement
        assert close(logits_of(reference, ids), logits_of(start, ids))

    before = {name: tensor.clone() for name, tensor in opened.state_dict().items()}
    logits_before = logits_of(opened, ids)
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    trained = model_of(trainer)
    moved = [name for name, tensor in trained.state_dict().items() if not tensor.equal(before[name])]
    # each norm, where there are any, and each matrix
    assert set(moved) == set(before)
    if reference is not None:
        assert close(logits_of(reference, ids), logits_of(start, ids))

    trainer.save_model()
    opener = AutoModelForSequenceClassification if make is reward else AutoModelForCausalLM
    expected = logits_of(trained, ids)
    assert not torch.allclose(expected, logits_before, atol=1e-3)
    for again in (opener.from_pretrained(tmp_path).eval(), load_whole_model(str(tmp_path))):
        assert type(again) is type(trained)
        assert again.config.placement == placement
        assert close(logits_of(again, ids), expected)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()


def test_the_placement_matters_for_what_is_compared(folders: Folders, ids: torch.Tensor) -> None:
    """The weights of `pre` and `lns` fit into each other's model: the logits above would differ if they were mixed."""
    pre, lns = load(folders("pre")), load(folders("lns"))
    other = load(folders("pre")).eval()
    other.load_state_dict(lns.state_dict())
    assert pre.state_dict().keys() == lns.state_dict().keys()
    assert not torch.allclose(logits_of(other, ids), logits_of(lns, ids), atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name, one in language_models().items() if one.head_classes])
def test_the_reward_model_of_an_architecture(
    architecture: str, folders: Folders, ids: torch.Tensor, tmp_path: Path
) -> None:
    folder = folders("mix(alpha=0.5)", architecture)
    torch.manual_seed(3)
    trainer = reward(str(folder), None, tmp_path)
    assert close(states_of(model_of(trainer), ids), states_of(load(folder).eval(), ids))
    trainer.train()
    trainer.save_model()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert close(logits_of(again, ids), logits_of(model_of(trainer), ids))


def test_the_head_of_a_reward_model_is_the_same_each_time(folders: Folders, tmp_path: Path) -> None:
    one, other = (model_of(reward(str(folders("lns")), None, tmp_path)).score.weight for _ in range(2))
    assert torch.equal(one, other)
    assert one.std() > 0


@pytest.mark.parametrize("make", [grpo, rloo, reward])
def test_a_reward_model_is_named_by_its_path(make: Make, folders: Folders, ids: torch.Tensor, tmp_path: Path) -> None:
    judge = tmp_path / "judge"
    trained = run(reward, folders("lns"), judge)
    trained.save_model()
    expected = logits_of(model_of(trained), ids)
    if make is reward:
        found = model_of(make(str(judge), None, tmp_path / "again"))
    else:
        policy = run(make, folders("mix(alpha=0.5)"), tmp_path / "policy", reward_funcs=str(judge))
        found = policy.reward_funcs[0]
        assert model_of(policy).config.placement == "mix(alpha=0.5)"
    assert found.config.placement == "lns"
    assert close(logits_of(found.eval(), ids), expected)


def test_a_language_model_that_is_taken_for_a_reward_model_is_named_in_a_warning(
    folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its head is of random numbers: TRL takes it, and transformers says so."""
    logger = logging.getLogger("transformers.modeling_utils")  # hands nothing on to the root logger
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, logger.name):
            grpo(str(folders("lns")), None, tmp_path, reward_funcs=str(folders("pre")))
    finally:
        logger.removeHandler(caplog.handler)
    assert "score.weight" in caplog.text
    assert "newly initialized" in caplog.text


@pytest.mark.parametrize("make", TRAINERS)
def test_lora_on_a_path_has_the_targets_of_the_stock_architecture(
    make: Make, folders: Folders, data: PreparedData, ids: torch.Tensor, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="needs mixln[healing]")
    stock = tmp_path / "stock"
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(data.tokenizer), num_hidden_layers=1, **sizes)).save_pretrained(stock)
    data.tokenizer.save_pretrained(stock)
    task = "SEQ_CLS" if make is reward else "CAUSAL_LM"
    of_stock = make(str(stock), None, tmp_path / "s", peft_config=peft.LoraConfig(task_type=task))
    wanted = of_stock.accelerator.unwrap_model(of_stock.model).peft_config["default"].target_modules

    folder = folders("lns")
    trainer = run(make, folder, tmp_path / "adapter", peft_config=peft.LoraConfig(task_type=task))
    trained = model_of(trainer)
    assert trained.peft_config["default"].target_modules == wanted == {"q_proj", "v_proj"}
    assert trained.base_model.model.config.placement == "lns"
    assert not close(states_of(trained.base_model.model, ids), states_of(load(folder).eval(), ids))
    trainer.save_model()
    opener = peft.AutoPeftModelForSequenceClassification if make is reward else peft.AutoPeftModelForCausalLM
    more = {"num_labels": 1} if make is reward else {}
    again = opener.from_pretrained(tmp_path / "adapter", **more).eval()
    assert again.base_model.model.config.placement == "lns"
    again.config.pad_token_id = trained.config.pad_token_id  # which TRL has set, and no adapter holds
    assert close(logits_of(again, ids), logits_of(trained, ids))
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert load_whole_model(str(tmp_path / "merged")).config.placement == "lns"
    with pytest.raises(InputError, match=r"holds an adapter of PEFT.*merge_and_unload"):
        load_whole_model(str(tmp_path / "adapter"))


@pytest.mark.parametrize("make", [dpo, grpo, kto, rloo])
def test_a_model_with_another_placement_has_no_reference_of_the_old_one(
    make: Make, data: PreparedData, tmp_path: Path
) -> None:
    """TRL opens the reference by the name of the model's folder, which holds a model of another placement."""
    build("pre", len(data.tokenizer)).save_pretrained(tmp_path / "pre")
    placed, _ = mixln.apply_placement(load(tmp_path / "pre"), "mix(alpha=0.5)")
    assert not placed.config.name_or_path
    if make is kto and OLD_TRL:  # a copy of the model
        assert make(placed, data.tokenizer, tmp_path / "out").ref_model.config.placement == "mix(alpha=0.5)"
    else:
        with pytest.raises(OSError, match="Repo id"):
            make(placed, data.tokenizer, tmp_path / "out")

    placed.save_pretrained(tmp_path / "placed")
    assert make(load(tmp_path / "placed"), data.tokenizer, tmp_path / "out").ref_model.config.placement == str(
        placed.config.placement
    )
    assert not mixln.stock_model(load(tmp_path / "pre")).config.name_or_path


@pytest.mark.parametrize("make", [sft, dpo])
def test_a_folder_in_bfloat16_is_opened_in_float32(make: Make, data: PreparedData, tmp_path: Path) -> None:
    model = grown(build("lns", len(data.tokenizer)))
    model.bfloat16().save_pretrained(tmp_path / "half")
    data.tokenizer.save_pretrained(tmp_path / "half")
    assert load(tmp_path / "half").dtype == torch.bfloat16
    trainer = make(str(tmp_path / "half"), None, tmp_path)
    assert model_of(trainer).dtype == torch.float32
    if make is dpo:
        assert trainer.ref_model.dtype == torch.float32
    trainer.save_model()
    assert load(tmp_path).dtype == torch.float32


def test_a_chat_template_that_brings_tokens_makes_the_embedding_larger(
    folders: Folders, ids: torch.Tensor, tmp_path: Path
) -> None:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    source = AutoTokenizer.from_pretrained(folders("lns"))
    source.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    source.eos_token = "<|im_end|>"
    source.chat_template = (
        "{% for one in messages %}<|im_start|>{{ one['role'] }}\n{{ one['content'] }}<|im_end|>\n{% endfor %}"
    )
    source.save_pretrained(tmp_path / "source")
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        chat_template_path=str(tmp_path / "source"),
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(str(folders("lns")), arguments, train_dataset=Dataset.from_dict({"messages": [turns] * 8}))
    trainer.train()
    trainer.save_model()
    trained, again = model_of(trainer), load(tmp_path).eval()
    embedding: Any = again.get_input_embeddings()
    assert again.config.placement == "lns"
    assert again.config.vocab_size == embedding.num_embeddings >= len(source)
    assert close(logits_of(again, ids), logits_of(trained, ids))
    assert "<|im_end|>" in AutoTokenizer.from_pretrained(tmp_path).get_vocab()


@pytest.mark.parametrize("make", [dpo, grpo])
def test_what_was_written_is_diagnosed_as_the_model_in_memory(
    make: Make, folders: Folders, data: PreparedData, tmp_path: Path
) -> None:
    """Of GRPO, whose tokenizer pads and cuts on the left, and is written so."""
    trainer = run(make, folders("mix(alpha=0.5)"), tmp_path)
    trainer.save_model()
    texts = [f"Document {number}: " + "the cat sat on the mat. " * 12 for number in range(4)]

    def diagnosis(model: Any, tokenizer: Any) -> DepthReport:
        options: dict[str, Any] = {"sequence_length": 32, "max_tokens": 300, "performance_tokens": 100}
        return mixln.diagnose(model, tokenizer, texts, only=["removal"], **options)

    by_path, in_memory = (
        diagnosis(str(tmp_path), None).to_frame(),
        diagnosis(model_of(trainer), data.tokenizer).to_frame(),
    )
    numbers = by_path.select_dtypes("number")
    assert len(numbers.columns) > 1
    torch.testing.assert_close(
        torch.tensor(numbers.to_numpy()), torch.tensor(in_memory[numbers.columns].to_numpy()), equal_nan=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", TRAINERS)
def test_what_was_written_opens_in_a_process_that_has_imported_mixln_alone(
    make: Make, folders: Folders, ids: torch.Tensor, tmp_path: Path
) -> None:
    trainer = run(make, folders("lns"), tmp_path)
    trainer.save_model()
    opener = "AutoModelForSequenceClassification" if make is reward else "AutoModelForCausalLM"
    torch.save(ids, tmp_path / "ids.pt")
    code = (
        "import sys, mixln, torch, transformers\n"
        "folder = sys.argv[1]\n"
        f"model = transformers.{opener}.from_pretrained(folder).eval()\n"
        "ids = torch.load(f'{folder}/ids.pt', weights_only=True)\n"
        "torch.save(model(input_ids=ids, use_cache=False).logits.detach(), f'{folder}/logits.pt')\n"
    )
    run_python(code, tmp_path)
    assert close(torch.load(tmp_path / "logits.pt", weights_only=True), logits_of(model_of(trainer), ids))


@pytest.mark.slow
def test_the_command_of_trl_in_a_process_that_imports_mixln(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"text": "The cat sat on the mat."}\n' * 8)
    code = "import mixln, runpy; runpy.run_module('trl.scripts.sft', run_name='__main__', alter_sys=True)"
    options = ["--max_steps", 1, "--use_cpu", "--report_to", "none", "--output_dir", tmp_path / "out"]
    run_python(code, "--model_name_or_path", folders("lns"), "--dataset_name", tmp_path / "rows", *options)
    assert load(tmp_path / "out").config.placement == "lns"


@pytest.mark.slow
def test_a_self_contained_folder_where_mixln_is_not_imported(
    data: PreparedData, ids: torch.Tensor, tmp_path: Path
) -> None:
    if OLD_TRL:
        pytest.skip("TRL 0.29 opens the config of a path without trust_remote_code, whatever it is given")
    model = grown(build("lns", len(data.tokenizer)))
    save_self_contained(model, tmp_path / "model")
    data.tokenizer.save_pretrained(tmp_path / "model")
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from ecosystem_trl import COMMON, preferences\n"
        "from trl import DPOConfig, DPOTrainer\n"
        "arguments = DPOConfig(output_dir=sys.argv[2], trust_remote_code=True, bf16=False, **COMMON)\n"
        "trainer = DPOTrainer(sys.argv[1], args=arguments, train_dataset=preferences())\n"
        "assert trainer.ref_model.config.placement == trainer.model.config.placement == 'lns'\n"
        "trainer.train()\n"
        "trainer.save_model()\n"
        "assert 'mixln' not in sys.modules\n"
    )
    run_python(code, tmp_path / "model", tmp_path / "out")
    code = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "torch.save(model.state_dict(), sys.argv[2])\n"
        "assert 'mixln' not in sys.modules\n"
    )
    run_python(code, tmp_path / "out", tmp_path / "weights.pt")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    trained = load(tmp_path / "out").eval()  # here by mixln's own class
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.state_dict().items())
    assert not torch.allclose(logits_of(trained, ids), logits_of(model, ids), atol=1e-3)
