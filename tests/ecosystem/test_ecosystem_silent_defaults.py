"""What docs/how-to/silent-defaults.md says of TRL and lm-evaluation-harness, in the installed versions."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from ecosystem_trl import COMMON, OLD_TRL, grpo, preferences, sft
from transformers import AutoTokenizer

Folders = Callable[..., Path]
DEFAULTS: dict[str, dict[str, Any]] = {
    "SFT": {"max_length": 1024, "packing": False, "packing_strategy": "bfd", "assistant_only_loss": False},
    "DPO": {"max_length": 1024, "truncation_mode": "keep_start", "beta": 0.1, "disable_dropout": True},
    "KTO": {"max_length": 1024, "beta": 0.1, "disable_dropout": True},
    "GRPO": {
        "beta": 0.0,
        "num_generations": 8,
        "scale_rewards": "group",
        "loss_type": "dapo",
        "mask_truncated_completions": False,
        "disable_dropout": False,
        "temperature": 1.0,
    },
    "RLOO": {
        "beta": 0.05,
        "num_generations": 2,
        "normalize_advantages": False,
        "mask_truncated_completions": False,
        "disable_dropout": False,
    },
    "Reward": {"max_length": 1024, "disable_dropout": True, "center_rewards_coefficient": None},
}
RATES = {"SFT": 2e-5, "DPO": 1e-6, "KTO": 1e-6, "GRPO": 1e-6, "RLOO": 1e-6, "Reward": 1e-4}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_of_a_trainer(name: str, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs mixln[sft]")
    config_class = getattr(import_module(f"trl.trainer.{name.lower()}_config"), f"{name}Config")
    config = config_class(output_dir=str(tmp_path), use_cpu=True)
    for field, value in DEFAULTS[name].items():
        assert getattr(config, field) == value, field
    assert config.learning_rate == RATES[name]
    assert (config.lr_scheduler_type, config.warmup_steps, config.weight_decay) == ("linear", 0, 0)
    assert (config.num_train_epochs, config.per_device_train_batch_size) == (3, 8)
    assert config.bf16
    assert config.gradient_checkpointing
    assert not hasattr(config, "max_prompt_length")


def test_pairs_with_one_long_answer_are_dropped(folders: Folders, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs mixln[sft]")
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    rows = preferences()
    short, long = rows[0]["chosen"][:10], rows[1]["chosen"] * 3
    data = Dataset.from_list([{"chosen": short, "rejected": short[::-1]}, {"chosen": short, "rejected": long}])
    arguments = RewardConfig(output_dir=str(tmp_path), max_length=64, bf16=False, **COMMON)
    trainer: Any = RewardTrainer(str(folders("lns")), args=arguments, train_dataset=data)
    assert len(trainer.train_dataset) == 1
    # where the end token pads too, the score is read before it
    assert trainer.processing_class.pad_token_id == trainer.processing_class.eos_token_id
    batch = next(iter(trainer.get_train_dataloader()))
    ids = batch["input_ids"]
    ends = (ids != trainer.model.config.pad_token_id).sum(-1)
    assert all(row[end] == trainer.processing_class.eos_token_id for row, end in zip(ids, ends, strict=True))


def test_answers_are_cut_at_their_end(folders: Folders, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs mixln[sft]")
    rows = sft(str(folders("lns")), None, tmp_path).train_dataset  # max_length 32
    end = AutoTokenizer.from_pretrained(folders("lns")).eos_token_id
    assert all(len(row["input_ids"]) == 32 and end not in row["input_ids"] for row in rows)


def first_loss(folder: Path, out: Path, **fields: Any) -> float:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = [{"text": f"Document {number} is about number {number * 7}, which is long."} for number in range(8)]
    common = COMMON | {"max_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-9}
    arguments = SFTConfig(output_dir=str(out), bf16=False, max_length=512, **(common | fields))
    trainer = SFTTrainer(str(folder), arguments, train_dataset=Dataset.from_list(rows))
    trainer.train()
    return trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("placement", ["lns", "none"])
def test_packing_keeps_attention_inside_each_example_unless_it_is_wrapped(
    placement: str, folders: Folders, tmp_path: Path
) -> None:
    pytest.importorskip("trl", reason="needs mixln[sft]")
    alone = first_loss(folders(placement), tmp_path)
    assert first_loss(folders(placement), tmp_path, packing=True) == pytest.approx(alone, abs=1e-4)
    wrapped = first_loss(folders(placement), tmp_path, packing=True, packing_strategy="wrapped")
    assert abs(wrapped - alone) > 1e-3


def test_pairs_whose_prompt_fills_the_limit_teach_dpo_nothing(folders: Folders, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs mixln[sft]")
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    arguments = DPOConfig(output_dir=str(tmp_path), max_length=16, bf16=False, **COMMON)
    rows = preferences().map(lambda row: {"prompt": row["prompt"] * 8})
    trainer: Any = DPOTrainer(str(folders("lns")), args=arguments, train_dataset=rows)
    if not OLD_TRL:
        assert len(trainer.train_dataset) == 0  # dropped
        return
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log["grad_norm"] == 0


def test_what_is_written_has_no_cache_and_pads_on_the_left(folders: Folders, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs mixln[sft]")
    trainer = grpo(str(folders("lns")), None, tmp_path)
    trainer.train()
    trainer.save_model()
    assert AutoTokenizer.from_pretrained(folders("lns")).padding_side == "right"
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"] is False


def test_the_harness_gives_one_models_cached_answers_to_another(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs mixln[evaluation]")
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM, CachingLM

    class Constant(LM):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def loglikelihood(self, requests: Any) -> Any:
            answers = [(self.value, False) for _ in requests]
            for request, answer in zip(requests, answers, strict=True):
                self.cache_hook.add_partial("loglikelihood", request.args, answer)
            return answers

        def loglikelihood_rolling(self, requests: Any) -> Any:
            raise NotImplementedError

        def generate_until(self, requests: Any) -> Any:
            raise NotImplementedError

    def answer(value: float) -> Any:
        request = Instance(request_type="loglikelihood", doc={}, arguments=("Who?", " Me"), idx=0)
        cached: Any = CachingLM(Constant(value), str(tmp_path / "answers.db"))
        return [tuple(one) for one in cached.loglikelihood([request])]

    assert answer(-1.0) == answer(-2.0) == [(-1.0, False)]


def test_the_defaults_of_the_harness() -> None:
    pytest.importorskip("lm_eval", reason="needs mixln[evaluation]")
    from lm_eval.config.task import TaskConfig
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import create_iterator

    settings = inspect.signature(simple_evaluate).parameters
    assert settings["fewshot_random_seed"].default == 1234
    assert settings["apply_chat_template"].default is False
    model = inspect.signature(HFLM.__init__).parameters
    assert model["add_bos_token"].default is None
    assert model["dtype"].default == "auto"
    assert cast(Any, HFLM)._DEFAULT_MAX_LENGTH == 2048
    task = TaskConfig(task="any")
    assert (task.target_delimiter, task.fewshot_delimiter) == (" ", "\n\n")
    assert list(create_iterator(range(9), rank=0, world_size=1, limit=3)) == [0, 1, 2]
    assert torch.tensor([float("nan"), 0.0]).numpy().argmax() == 0
