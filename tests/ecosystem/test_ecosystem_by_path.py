"""Every library of docs/how-to/other-libraries.md takes a folder as well as a model, and does the same with either.

Libraries find the class of a folder in ways of their own: by an Auto class, by the name in `architectures`, by a
mapping in the config. A model in memory passes all of them by, so that only a folder shows which of them fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from ecosystem_tools import PLACEMENTS, assert_same_weights, build, grown, load, logits_of, token_rows
from ecosystem_trl import COMMON, ROWS, Make, dpo, grpo, kto, rloo, sft
from transformers import AutoConfig, PreTrainedTokenizerFast, Trainer, TrainingArguments, pipeline

from mixln.data import PreparedData
from mixln.models import language_models
from mixln.models.decoder import PlacedForCausalLM


def trained(make: Make, model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> tuple[list[Any], Any]:
    """The numbers of each step, and the model, which is of our own class."""
    torch.manual_seed(3)  # what is sampled before the trainer sets its seed
    trainer = make(model, tokenizer, out)
    trainer.train()
    log = [(entry["loss"], entry["grad_norm"], entry.get("reward")) for entry in trainer.state.log_history[:2]]
    found = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(found, PlacedForCausalLM)
    return log, found


def check_trainer(make: Make, folder: Path, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    by_path, from_path = trained(make, str(folder), tokenizer, out / "path")
    by_instance, instance = trained(make, load(folder), tokenizer, out / "instance")
    assert by_path == by_instance
    assert by_path[0][1] > 0, "nothing was learned, so that nothing was compared"
    assert_same_weights(from_path, instance)
    before = load(folder).state_dict()
    assert any(not tensor.equal(before[name]) for name, tensor in instance.state_dict().items())


OF_TRL = [sft, dpo, pytest.param(kto, marks=pytest.mark.slow), grpo, pytest.param(rloo, marks=pytest.mark.slow)]


@pytest.mark.parametrize("make", OF_TRL)
def test_a_trainer_of_trl(make: Make, folders: Callable[..., Path], data: PreparedData, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs mixln[sft]")
    check_trainer(make, folders(), data.tokenizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("make", [sft, dpo, kto, grpo, rloo])
@pytest.mark.parametrize("placement", PLACEMENTS[1:])
def test_a_trainer_of_trl_under_a_placement(
    make: Make, placement: str, folders: Callable[..., Path], data: PreparedData, tmp_path: Path
) -> None:
    pytest.importorskip("trl", reason="needs mixln[sft]")
    check_trainer(make, folders(placement), data.tokenizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in language_models() if name != "llama"])
def test_dpo_of_an_architecture(
    architecture: str, folders: Callable[..., Path], data: PreparedData, tmp_path: Path
) -> None:
    pytest.importorskip("trl", reason="needs mixln[sft]")
    check_trainer(dpo, folders(architecture=architecture), data.tokenizer, tmp_path)


def test_trainer_of_transformers(folders: Callable[..., Path], data: PreparedData, tmp_path: Path) -> None:
    """Its way to take a folder is a function that opens it, which it calls itself."""

    def make(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> Any:
        given: dict[str, Any] = {"model": model}
        if isinstance(model, str):
            given = {"model_init": lambda: load(Path(model))}
        arguments = TrainingArguments(output_dir=str(out), **COMMON)
        return Trainer(**given, args=arguments, train_dataset=token_rows(tokenizer, rows=ROWS))

    check_trainer(make, folders(), data.tokenizer, tmp_path)


def test_pipeline(folders: Callable[..., Path], data: PreparedData) -> None:
    options = {"max_new_tokens": 8, "do_sample": False}
    by_path = cast(Any, pipeline)("text-generation", model=str(folders()), device="cpu")
    by_instance = cast(Any, pipeline)("text-generation", model=load(folders()), tokenizer=data.tokenizer, device="cpu")
    assert by_path("A class is", **options) == by_instance("A class is", **options)


def test_peft_opens_an_adapter_with_the_folder_that_it_names(
    folders: Callable[..., Path], data: PreparedData, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="needs mixln[healing]")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(load(folders()), config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ids = torch.randint(len(data.tokenizer), (2, 12))
    assert isinstance(found.base_model.model, PlacedForCausalLM)
    assert torch.equal(logits_of(found, ids), logits_of(adapted, ids))
    assert not torch.equal(logits_of(found, ids), logits_of(load(folders()), ids))


def test_accelerate_fills_an_empty_model_from_a_folder(folders: Callable[..., Path], data: PreparedData) -> None:
    accelerate = pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    with accelerate.init_empty_weights():
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folders()))
    filled = accelerate.load_checkpoint_and_dispatch(empty, folders(), device_map={"": "cpu"}).eval()
    ids = torch.randint(len(data.tokenizer), (2, 12))
    assert torch.equal(logits_of(filled, ids), logits_of(load(folders()), ids))


def test_torch_export(folders: Callable[..., Path], data: PreparedData) -> None:
    model = grown(build(PLACEMENTS[0], len(data.tokenizer)))
    ids = torch.randint(len(data.tokenizer), (2, 12))
    programs = [
        torch.export.export(one, (), {"input_ids": ids, "use_cache": False}, strict=False)
        for one in (model, load(folders()).eval())
    ]
    one, other = (program.module()(input_ids=ids, use_cache=False).logits for program in programs)
    assert torch.equal(one, other)
