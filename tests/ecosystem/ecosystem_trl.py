"""TRL's trainers on rows of real text, each made from a model or the path of its folder."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from datasets import Dataset
from packaging.version import Version
from transformers import PreTrainedTokenizerBase

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
"""Fields of every trainer of transformers and TRL."""

OLD_TRL = find_spec("trl") is not None and Version(version("trl")) < Version("1")
"""Before 1.0 KTO is that of `trl.experimental`: it asks for a tokenizer, and copies the model for its reference."""

Make = Callable[..., Any]
"""Of (model or path, tokenizer or None, folder for the output, any other arguments of the trainer): the trainer.

Without a tokenizer, TRL opens that of the path.
"""


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


def sft(model: Any, tokenizer: PreTrainedTokenizerBase | None, out: Path, **more: Any) -> Any:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    arguments = SFTConfig(output_dir=str(out), max_length=32, bf16=False, **COMMON)
    return SFTTrainer(model, arguments, train_dataset=texts(), processing_class=tokenizer, **more)


def dpo(model: Any, tokenizer: PreTrainedTokenizerBase | None, out: Path, **more: Any) -> Any:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    arguments = DPOConfig(output_dir=str(out), max_length=48, bf16=False, **COMMON)
    return DPOTrainer(model, args=arguments, train_dataset=preferences(), processing_class=tokenizer, **more)


def kto(model: Any, tokenizer: PreTrainedTokenizerBase | None, out: Path, **more: Any) -> Any:
    from transformers import AutoTokenizer
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    if tokenizer is None and OLD_TRL:
        tokenizer = AutoTokenizer.from_pretrained(model)
    arguments = KTOConfig(output_dir=str(out), max_length=48, bf16=False, **COMMON)
    return KTOTrainer(model, args=arguments, train_dataset=judgements(), processing_class=tokenizer, **more)


def grpo(model: Any, tokenizer: PreTrainedTokenizerBase | None, out: Path, **more: Any) -> Any:
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    # beta: with the reference model, which TRL opens by the folder of the model that it trains
    arguments = GRPOConfig(
        output_dir=str(out), max_completion_length=8, num_generations=2, beta=0.1, bf16=False, **COMMON
    )
    more = {"reward_funcs": share_of_vowels} | more
    return GRPOTrainer(model, args=arguments, train_dataset=prompts(), processing_class=tokenizer, **more)


def rloo(model: Any, tokenizer: PreTrainedTokenizerBase | None, out: Path, **more: Any) -> Any:
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    arguments = RLOOConfig(output_dir=str(out), max_completion_length=8, num_generations=2, bf16=False, **COMMON)
    more = {"reward_funcs": share_of_vowels} | more
    return RLOOTrainer(model, args=arguments, train_dataset=prompts(), processing_class=tokenizer, **more)


def reward(model: Any, tokenizer: PreTrainedTokenizerBase | None, out: Path, **more: Any) -> Any:
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    # its default would drop each pair that is longer, without a word
    arguments = RewardConfig(output_dir=str(out), max_length=None, bf16=False, **COMMON)
    return RewardTrainer(model, args=arguments, train_dataset=preferences(), processing_class=tokenizer, **more)
