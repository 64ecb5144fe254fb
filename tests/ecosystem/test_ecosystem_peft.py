"""LoRA by PEFT: it trains the adapter alone, which can be merged, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from ecosystem_tools import STEPS, build, grown, load, logits_of, losses_fell, token_rows
from transformers import Trainer, TrainingArguments

from mixln.data import PreparedData
from mixln.models import ARCHITECTURES

peft = pytest.importorskip("peft", reason="needs mixln[healing]")

PLACEMENTS = ["mix(alpha=0.5)", "pre+qk_norm+gpas", "hybrid"]
FUSED = {"gpt2": ["c_attn"]}
"""Where query, key and value are one matrix."""


def check(placement: str, architecture: str, data: PreparedData, folder: Path) -> None:
    base = grown(build(placement, len(data.tokenizer), architecture))
    base.save_pretrained(folder / "base")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    ids = torch.tensor(token_rows(data.tokenizer, 2)["input_ids"])
    untouched = logits_of(base, ids)

    targets = FUSED.get(architecture, ["q_proj", "v_proj"])
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(cast(Any, base), settings)
    assert torch.equal(logits_of(model, ids), untouched)
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=3e-2,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Trainer(model, arguments, train_dataset=token_rows(data.tokenizer))
    trainer.train()
    assert losses_fell(trainer.state.log_history, by=0.02)
    moved = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(moved) == 2 * len(targets) * 4
    assert all("lora_" in name for name in moved)
    for name, tensor in model.named_parameters():
        if name not in moved:
            own = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            assert torch.equal(tensor, before[own]), name

    trained = logits_of(model.eval(), ids)
    assert not torch.allclose(trained, untouched, atol=1e-2)
    model.save_pretrained(folder / "adapter")
    reopened = peft.PeftModel.from_pretrained(cast(Any, load(folder / "base")), folder / "adapter").eval()
    assert torch.equal(logits_of(reopened, ids), trained)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, ids), trained, rtol=0, atol=1e-5)
    merged.save_pretrained(folder / "merged")
    assert torch.equal(logits_of(load(folder / "merged"), ids), logits_of(merged, ids))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_placement(placement: str, data: PreparedData, tmp_path: Path) -> None:
    check(placement, "llama", data, tmp_path)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "llama"])
def test_an_architecture(architecture: str, data: PreparedData, tmp_path: Path) -> None:
    check("mix(alpha=0.5)", architecture, data, tmp_path)
