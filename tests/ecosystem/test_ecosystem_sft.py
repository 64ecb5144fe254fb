"""TRL's SFTTrainer on texts, and on prompts with completions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from datasets import Dataset
from ecosystem_tools import STEPS, assert_same_weights, build, load, losses_fell
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mixln.data import PreparedData
from mixln.data.example_data import ExampleRequest
from mixln.studies.fine_tuned_model import plan_fine_tuning, run_fine_tuning
from mixln.tasks.fine_tuning_config import FineTuningConfig

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
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

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


def test_the_first_step_has_the_loss_of_our_own_fine_tuning(data: PreparedData, tmp_path: Path) -> None:
    """The same rows, one batch of all of them: TRL pads them one by one, we pack them."""
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = instructions().select(range(8)).map(lambda row: {"completion": row["completion"][:60]})
    model = build("mix(alpha=0.5)", len(data.tokenizer))
    model.save_pretrained(tmp_path / "model")
    data.tokenizer.save_pretrained(tmp_path / "model")
    arguments = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=1,
        per_device_train_batch_size=8,
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=data.tokenizer)
    trainer.train()
    theirs = trainer.state.log_history[0]["loss"]

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    request = ExampleRequest([str(file)], validation_sources=[str(held_out)])
    config = FineTuningConfig(sequence_length=64, precision="float32", learning_rate=1e-12)
    plan = plan_fine_tuning(str(tmp_path / "model"), request, config)
    whole_epoch = replace(config, batch_size=len(plan.data.train))
    run_fine_tuning(plan_fine_tuning(str(tmp_path / "model"), request, whole_epoch), tmp_path / "ours")
    ours = json.loads((tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert ours == pytest.approx(theirs, abs=1e-4)
