"""Transformers' own Trainer: it trains, saves, loads and resumes a model under any placement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ecosystem_tools import (
    OTHER_ARCHITECTURES,
    PLACEMENTS,
    STEPS,
    assert_same_weights,
    build,
    load,
    losses_fell,
    token_rows,
)
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

import mixln
from mixln.data import PreparedData
from mixln.models.decoder import PlacedDecoderLayer, PlacedForCausalLM

MODIFIED = [f"mix(alpha=0.5)+{modifier}" for modifier in mixln.modifiers()]


def trainer(model: PlacedForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, **changes: Any) -> Trainer:
    fields: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "gradient_checkpointing": True,
        "logging_steps": 1,
        "save_steps": STEPS // 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    arguments = TrainingArguments(output_dir=str(folder), **(fields | changes))
    return Trainer(model, arguments, train_dataset=token_rows(tokenizer), processing_class=tokenizer)


def check(placement: str, architecture: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Train, with the blocks computed twice a step, and open what was saved on the way and at the end."""
    model = build(placement, len(tokenizer), architecture)
    calls: list[int] = []
    block = next(module for module in model.modules() if isinstance(module, PlacedDecoderLayer))
    handle = block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    whole = trainer(model, tokenizer, folder)
    whole.train()
    handle.remove()
    assert len(calls) == 2 * STEPS, "the blocks were not computed a second time: nothing was checkpointed"
    assert losses_fell(whole.state.log_history, by=0.5)
    loaded = load(folder / f"checkpoint-{STEPS}")
    assert str(loaded.config.placement) == str(model.config.placement)
    assert_same_weights(loaded, model)
    resumed = trainer(build(placement, len(tokenizer), architecture), tokenizer, folder / "resumed")
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}"))
    assert len([entry for entry in resumed.state.log_history if "loss" in entry]) == STEPS
    assert resumed.model is not None
    assert_same_weights(resumed.model, model)


@pytest.mark.parametrize("placement", PLACEMENTS[:2])
def test_a_placement_is_trained_saved_loaded_and_resumed(placement: str, data: PreparedData, tmp_path: Path) -> None:
    check(placement, "llama", data.tokenizer, tmp_path)


@pytest.mark.parametrize("architecture", OTHER_ARCHITECTURES)
def test_an_architecture_is_trained_saved_loaded_and_resumed(
    architecture: str, data: PreparedData, tmp_path: Path
) -> None:
    check("mix(alpha=0.5)", architecture, data.tokenizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("placement", [*PLACEMENTS[2:], *mixln.schemes(), *MODIFIED])
def test_every_scheme_and_modifier_is(placement: str, data: PreparedData, tmp_path: Path) -> None:
    check(placement, "llama", data.tokenizer, tmp_path)
