"""Folders that `mixln prune` writes, opened by the stock class, beside the model with a block bypassed."""

from __future__ import annotations

import contextlib
import io
import json
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.sweep import reference
from tests.sweep.building import model_rows, sweep_tokenizer, takes_images, text
from tests.sweep.catalogue import Entry
from tests.sweep.diagnosing import named_lists
from tests.sweep.outcome import Outcome, attempt, where
from tests.sweep.reference import Forms, Rows
from torch import nn
from transformers import PreTrainedModel

from mixln import cli


@dataclass
class Command:
    """What a command line gave back."""

    status: int
    error: str


def command(*arguments: str) -> Command:
    """Run `mixln` in this process; a traceback is status 1, as of a command line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = cli.main(list(arguments))
    except Exception as error:
        return Command(1, f"{where(error)}\n{traceback.format_exc()}")
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("mixln: ") or status not in (0, 2)]
    return Command(status, "\n".join(lines))


def write_text(folder: Path) -> Path:
    """Documents of different lengths: rows are padded, and cut where a model has few positions."""
    folder.mkdir()
    for name, length in (("long", 100), ("longer", 120), ("short", 9)):
        (folder / f"{name}.txt").write_text(text(length, length), encoding="utf-8")
    return folder


def save(model: PreTrainedModel, folder: Path) -> Path:
    """An ordinary folder, with the tokenizer unless the model takes images."""
    model.save_pretrained(folder)
    if not takes_images(model):
        sweep_tokenizer().save_pretrained(folder)
    return folder


def check_prune(
    entry: Entry, source: Path, folder: Path, layers: tuple[int, ...], *, every: bool = True
) -> list[Outcome]:
    """Each of some layers (from 1) alone is taken out of the model in `source`; or those up to one that can be."""
    try:
        stock = entry.model_class.from_pretrained(source).eval()
    except Exception as error:
        return [Outcome("prune", "not built", f"transformers cannot open what it wrote: {where(error)}")]
    outcomes: list[Outcome] = []
    # what the layers cost is measured on little text: that takes longer than all else
    measured = ["--text", str(write_text(folder / "text")), "--batch-size", "2"]
    extra: list[str] = []
    for layer in layers:
        out = folder / f"without_{layer}"
        outcome = attempt("prune", lambda: _prune_one(entry, stock, source, out, layer, [*measured, *extra]))  # noqa: B023
        if not extra:
            for name in named_lists(outcome.detail) if outcome.status == "refused" else []:
                options = ["--stack", name]
                again = attempt(
                    "prune",
                    lambda: _prune_one(entry, stock, source, out, layer, [*measured, *options]),  # noqa: B023
                )
                if again.status != "refused":
                    extra, outcome = options, again
                    break
        outcome.check = f"prune {layer}"
        outcome.notes = [" ".join(extra)] if extra else []
        outcomes.append(outcome)
        if outcome.status == "right" and not every:
            break
    return outcomes


def _prune_one(
    entry: Entry, stock: PreTrainedModel, source: Path, out: Path, layer: int, options: list[str]
) -> Outcome:
    done = command("prune", str(source), str(out), "--layers", str(layer), *options)
    if done.status == 2 and len(done.error.splitlines()) == 1:
        message = done.error.removeprefix("mixln: ").replace(str(source.parent), "FOLDER")
        return Outcome("prune", "refused", message)
    if done.status != 0:
        return Outcome("prune", "TRACEBACK", f"status {done.status}: {done.error}"[:600])
    if trouble := folder_trouble(entry, stock, out, layer):
        return Outcome("prune", "WRONG", trouble)
    return Outcome("prune", "right")


def folder_trouble(entry: Entry, stock: PreTrainedModel, out: Path, layer: int) -> str | None:
    """What is wrong with a folder."""
    record = json.loads((out / "pruning.json").read_text())
    classes = json.loads((out / "config.json").read_text()).get("architectures")
    if classes != [entry.name]:
        return f"{classes} in place of {entry.name}"
    reopened, loading = entry.model_class.from_pretrained(out, output_loading_info=True)
    reopened = reopened.eval()
    if missing := [f"{kind}: {sorted(map(str, names))[:2]}" for kind, names in loading.items() if names]:
        return f"opened with {'; '.join(missing)}"[:300]
    rows = model_rows(stock)
    reasons: list[str] = []
    for blocks in _lists(stock, record["num_layers_before"]):
        reason = _differences(stock, reopened, blocks, layer, rows)
        if reason is None:
            return _generation_trouble(stock, reopened, rows[0])
        reasons.append(reason)
    return min(reasons, key=len, default=f"no list of {record['num_layers_before']} blocks in the model")


def _lists(model: nn.Module, length: int) -> list[str]:
    """The outermost lists of so many blocks."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) == length
    ]
    return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]


def _differences(stock: PreTrainedModel, reopened: PreTrainedModel, blocks: str, layer: int, rows: Rows) -> str | None:
    """How a folder's model differs from the whole one with a block of this list bypassed."""
    if trouble := _other_shapes(stock, reopened, blocks, layer):
        return trouble
    removed = reference.changed_copy(stock, blocks, Forms(stock, blocks, rows[0]).bypassed([layer - 1]))
    worst = 0.0
    for row in rows:
        right, there = (reference.main_output(reference.run(model, row)) for model in (removed, reopened))
        worst = max(worst, ((there - right).abs().max() / right.abs().max().clamp_min(1e-3)).item())
    return None if worst < 1e-4 else f"outputs of the folder differ by {worst:.2g} of the largest"


def _other_shapes(stock: nn.Module, reopened: nn.Module, blocks: str, layer: int) -> str | None:
    """What of the parameters is not that of the whole model without a layer, or, of one for all layers, its part."""
    length = len(list(stock.get_submodule(blocks).children()))
    before, after = (
        {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
        for model in (stock, reopened)
    )
    inside = Counter(
        shape
        for name, shape in before.items()
        if name.startswith(f"{blocks}.") and not name.startswith(f"{blocks}.{layer - 1}.")
    )
    left = Counter(shape for name, shape in after.items() if name.startswith(f"{blocks}."))
    if inside != left:
        return f"parameters of the layers are {left - inside} too many, {inside - left} too few"
    outside, kept = ({n: s for n, s in names.items() if not n.startswith(f"{blocks}.")} for names in (before, after))
    if outside.keys() != kept.keys():
        return f"other parameters: {sorted(outside.keys() ^ kept.keys())[:3]}"
    for name, shape in outside.items():
        shorter = [(*shape[:d], shape[d] // length * (length - 1), *shape[d + 1 :]) for d in range(len(shape))]
        if kept[name] not in (shape, *shorter):
            return f"{name} is {kept[name]}, not {shape}"
    return None


def _generation_trouble(stock: PreTrainedModel, reopened: PreTrainedModel, row: dict[str, torch.Tensor]) -> str | None:
    """What is wrong with greedy generation with a cache, if it is right for the whole model."""
    if takes_images(stock) or not stock.can_generate() or not _is_causal(stock, row):
        return None
    try:
        if not torch.equal(_generated(stock, row, use_cache=True), _generated(stock, row, use_cache=False)):
            return None
    except Exception:  # transformers' own; there is nothing to compare with
        return None
    try:
        cached, uncached = (_generated(reopened, row, use_cache=use_cache) for use_cache in (True, False))
    except Exception as error:
        return f"generation from the folder: {where(error)}"
    return None if torch.equal(cached, uncached) else f"generates {cached.tolist()} cached, {uncached.tolist()} not"


def _is_causal(model: PreTrainedModel, row: dict[str, torch.Tensor]) -> bool:
    """Whether what comes later has no influence on what came before: a cache makes sense only then."""
    other = {name: torch.cat([value[:, :-1], value[:, -1:] - 1], dim=1) for name, value in row.items()}
    one, two = (reference.main_output(reference.run(model, given))[:, :-1] for given in (row, other))
    return torch.allclose(one, two, atol=1e-4, rtol=1e-4)


def _generated(model: PreTrainedModel, row: dict[str, torch.Tensor], *, use_cache: bool) -> torch.Tensor:
    generate: Any = model.generate
    return generate(
        input_ids=row["input_ids"],
        attention_mask=torch.ones_like(row["input_ids"]),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=0,
    )
