"""Healing for a step, and the loss that it reports beside one that is computed document by document."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.sweep import reference
from tests.sweep.building import sweep_tokenizer, text
from tests.sweep.catalogue import Entry
from tests.sweep.outcome import Outcome, where
from tests.sweep.small_configs import WINDOW

from mixln.data import DataConfig, PreparedData, prepare_data
from mixln.tasks import FineTuning, Recipe
from mixln.training import OptimizerConfig, train


@dataclass(frozen=True)
class HealingData:
    """What every model is healed on."""

    recipe: Recipe
    data: PreparedData


def healing_data(folder: Path) -> HealingData:
    """Documents of some words each, packed into rows no longer than a sliding window."""
    for name, count, seed in (("train", 40, 100), ("valid", 6, 500)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            (folder / name / f"{index:02}.txt").write_text(text(3 + index % 6, seed + index), encoding="utf-8")
    sweep_tokenizer().save_pretrained(folder / "tokenizer")
    config = DataConfig(
        corpus=str(folder / "train"),
        validation_corpus=str(folder / "valid"),
        tokenizer=str(folder / "tokenizer"),
        max_validation_tokens=64,
        sequence_length=WINDOW,
    )
    recipe = Recipe(
        data=config,
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3),
        steps=1,
        batch_size=4,
        precision="float32",
    )
    return HealingData(recipe, prepare_data(config, folder / "cache"))


def check_heal(entry: Entry, source: Path, given: HealingData, folder: Path) -> Outcome:
    """The model in `source` is trained for a step; what comes out is opened by the stock class."""
    trained = train(FineTuning(source, given.recipe, given.data), folder)
    out = folder / "model"
    reopened, loading = entry.model_class.from_pretrained(out, output_loading_info=True)
    reopened = reopened.eval()
    if troubles := [f"{name}: {sorted(loading[name])[:2]}" for name in loading if loading[name]]:
        return Outcome("heal", "WRONG", f"opened with {'; '.join(troubles)}"[:300])
    before, after = (load_file(path / "model.safetensors") for path in (source, out))
    if before.keys() != after.keys():
        return Outcome("heal", "WRONG", f"other tensors than before: {sorted(before.keys() ^ after.keys())[:3]}")
    if other := [name for name, tensor in before.items() if tensor.dtype != after[name].dtype]:
        return Outcome("heal", "WRONG", f"another precision than before: {other[:3]}")
    if all(torch.equal(tensor, after[name]) for name, tensor in before.items()):
        return Outcome("heal", "WRONG", "nothing was trained")
    try:
        right = _loss_of_documents(reopened, given.data)
    except Exception as error:
        return Outcome("heal", "left out", f"no reference: {where(error)}")
    difference = abs(trained.validation.mean - right)
    if not difference < 2e-5 * max(1.0, abs(right)):
        return Outcome("heal", "WRONG", f"reports a loss of {trained.validation.mean}, {right} is right", difference)
    return Outcome("heal", "right", "", difference)


def _loss_of_documents(model: torch.nn.Module, data: PreparedData) -> float:
    total, count = 0.0, 0
    batch = data.validation.batch(range(len(data.validation)))
    for ids, positions, targets in zip(batch.input_ids, batch.position_ids, batch.targets, strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for start, end in pairwise(starts):
            wanted = targets[start:end]
            if (wanted != -100).any():
                logits = reference.run(model, {"input_ids": ids[None, start:end]}).logits[0].double()
                total += F.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum").item()
                count += int((wanted != -100).sum())
    return total / count
