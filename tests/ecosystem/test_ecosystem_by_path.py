"""Every library of docs/how-to/other-libraries.md takes a folder as well as a model, and does the same with either.

Libraries find the class of a folder in ways of their own: by an Auto class, by the name in `architectures`, by a
mapping in the config. A model in memory passes all of them by, so that only a folder shows which of them fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from ecosystem_tools import PLACEMENTS, assert_same_weights, build, grown, load, logits_of, token_rows
from transformers import AutoConfig, PreTrainedTokenizerFast, Trainer, TrainingArguments, pipeline

from mixln.data import PreparedData
from mixln.models import language_models
from mixln.models.decoder import PlacedForCausalLM

ROWS = 8
COMMON: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "seed": 3,
}
Make = Callable[[Any, PreTrainedTokenizerFast, Path], Any]


@pytest.fixture(scope="module")
def folders(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a model with its tokenizer once for each placement and architecture."""
    root = tmp_path_factory.mktemp("models")

    def folder(placement: str = PLACEMENTS[0], architecture: str = "llama") -> Path:
        path = root / f"{architecture}-{placement}"
        if not path.exists():
            model = grown(build(placement, len(data.tokenizer), architecture))
            model.save_pretrained(path)
            data.tokenizer.save_pretrained(path)
        return path

    return folder


def words(name: str) -> str:
    return topics[name][:120]


def texts() -> Dataset:
    return Dataset.from_dict({"text": [words(name) for name in sorted(topics)[:ROWS]]})


def preferences() -> Dataset:
    names = sorted(topics)[:ROWS]
    return Dataset.from_dict(
        {
            "prompt": [f"What is {name}?\n" for name in names],
            "chosen": [words(name) for name in names],
            "rejected": [words(name)[::-1] for name in names],
        }
    )


def judgements() -> Dataset:
    names = sorted(topics)[:ROWS]
    labels = [number % 2 == 0 for number in range(ROWS)]
    return Dataset.from_dict({"prompt": names, "completion": [words(name) for name in names], "label": labels})


def prompts() -> Dataset:
    return Dataset.from_dict({"prompt": [f"What is {name}?" for name in sorted(topics)[:ROWS]]})


def share_of_vowels(*_: Any, completions: list[str], **__: Any) -> list[float | None]:
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]


def sft(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> Any:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    arguments = SFTConfig(output_dir=str(out), max_length=32, bf16=False, **COMMON)
    return SFTTrainer(model, arguments, train_dataset=texts(), processing_class=tokenizer)


def dpo(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> Any:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    arguments = DPOConfig(output_dir=str(out), max_length=48, bf16=False, **COMMON)
    return DPOTrainer(model, args=arguments, train_dataset=preferences(), processing_class=tokenizer)


def kto(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> Any:
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    arguments = KTOConfig(output_dir=str(out), max_length=48, bf16=False, **COMMON)
    return KTOTrainer(model, args=arguments, train_dataset=judgements(), processing_class=tokenizer)


def grpo(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> Any:
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    # beta: with the reference model, which TRL opens by the folder of the model that it trains
    arguments = GRPOConfig(
        output_dir=str(out), max_completion_length=8, num_generations=2, beta=0.1, bf16=False, **COMMON
    )
    return GRPOTrainer(
        model, reward_funcs=share_of_vowels, args=arguments, train_dataset=prompts(), processing_class=tokenizer
    )


def rloo(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> Any:
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    arguments = RLOOConfig(output_dir=str(out), max_completion_length=8, num_generations=2, bf16=False, **COMMON)
    return RLOOTrainer(
        model, reward_funcs=share_of_vowels, args=arguments, train_dataset=prompts(), processing_class=tokenizer
    )


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
