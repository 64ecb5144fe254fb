"""TRL's SFTTrainer on texts, and on prompts with completions."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from datasets import Dataset
from ecosystem_tools import STEPS, assert_same_weights, build, load, losses_fell
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mixln.data import PreparedData

pytest.importorskip("trl", reason="needs mixln[sft]")


def texts() -> Dataset:
    return Dataset.from_dict({"text": [topics[name][:300] for name in sorted(topics)[:40]]})


def instructions() -> Dataset:
    names = sorted(topics)[:40]
    return Dataset.from_dict(
        {
            "prompt": [f"What is {name.lower()}?\n" for name in names],
            "completion": [topics[name][:200] for name in names],
        }
    )


def tune(placement: str, rows: Dataset, tokenizer: PreTrainedTokenizerFast, folder: Path, **changes: Any) -> None:
    from trl import SFTConfig, SFTTrainer

    fields: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_length": 64,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    model = build(placement, len(tokenizer))
    arguments = SFTConfig(output_dir=str(folder), **(fields | changes))
    trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert losses_fell(trainer.state.log_history, by=0.5)
    trainer.save_model()
    loaded = load(folder)
    assert str(loaded.config.placement) == str(model.config.placement)
    assert_same_weights(loaded, model)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("placement", ["mix(alpha=0.5)", "hybrid"])
def test_texts(placement: str, data: PreparedData, tmp_path: Path) -> None:
    tune(placement, texts(), data.tokenizer, tmp_path)


def test_prompts_with_completions(data: PreparedData, tmp_path: Path) -> None:
    tune("mix(alpha=0.5)", instructions(), data.tokenizer, tmp_path)
