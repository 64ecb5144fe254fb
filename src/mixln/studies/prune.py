"""Removing layers from a checkpoint: which, by what measure, and the folder that comes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixln.data import open_corpus
from mixln.depth.pruning import check_removable, remove_blocks
from mixln.depth.stack import BlockStack, find_block_stack
from mixln.errors import InputError
from mixln.files import require_new_folder
from mixln.report.diagnosis import ModelDiagnosis
from mixln.studies.diagnose import DiagnosisConfig, diagnose_model
from mixln.studies.stages import ReportStage
from mixln.training.run_folder import save_model
from mixln.version import __version__

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Criterion = Literal["angular", "removal", "influence"]
CRITERIA: tuple[Criterion, ...] = ("angular", "removal", "influence")

PRUNING_FILE = "pruning.json"

_MOST_LAYERS = 10_000
"""Of any model: a slip in a range is found before it fills the memory."""


@dataclass(frozen=True)
class PruningRequest:
    """What is to be removed, and how it is chosen.

    Attributes:
        source: Hugging Face folder or hub name of the model.
        layers: these, counted from 0; None: `drop` of them are chosen.
        drop: how many.
        by: the criterion.
        consecutive: whether they must be a run.
        text: corpus to measure on.
        measurement: how much of it; its `measures` and `run_lengths` follow from the criterion.
        stack: name of the list of blocks, where it cannot be told.
    """

    source: str
    layers: tuple[int, ...] | None = None
    drop: int = 0
    by: Criterion = "angular"
    consecutive: bool = True
    text: str = "python"
    measurement: DiagnosisConfig = field(default_factory=DiagnosisConfig)
    stack: str | None = None

    @property
    def num_removed(self) -> int:
        """How many layers are removed."""
        return self.drop if self.layers is None else len(self.layers)

    def record(self, indices: Sequence[int], num_layers: int) -> PruningRecord:
        """Return what is written down when these layers of so many are removed."""
        chosen = self.layers is None
        return PruningRecord(
            source=self.source,
            removed_layers=[index + 1 for index in indices],
            num_layers_before=num_layers,
            criterion=self.by if chosen else None,
            consecutive=chosen and self.consecutive,
            text=self.text if chosen else None,
            max_tokens=self.measurement.max_tokens if chosen else None,
            window=self.measurement.window if chosen else None,
        )


@dataclass(frozen=True)
class PruningRecord:
    """What `pruning.json` in the folder of a pruned model says.

    Attributes:
        source: the model that it was made of.
        removed_layers: counted from 1, in that model.
        num_layers_before: of that model.
        criterion: how the layers were chosen; None: they were named.
        consecutive: whether they had to be a run.
        text: what was measured on, if something was.
        max_tokens: of it.
        window: tokens of a piece of it.
        version: of mixln.
    """

    source: str
    removed_layers: list[int]
    num_layers_before: int
    criterion: Criterion | None
    consecutive: bool
    text: str | None = None
    max_tokens: int | None = None
    window: int | None = None
    version: str = __version__


def parse_layers(text: str) -> list[int]:
    """Read layers such as `21-27` or `3,5,8-10`: counted from 1, both ends included.

    Returns:
        Their indices, counted from 0, in order.

    Raises:
        InputError: it is not of that form.
    """
    indices: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise InputError(f"--layers {text}: {part or text!r} is no layer. Write them as 21-27 or 3,5,8-10")
        first, last = int(match[1]), int(match[2] or match[1])
        if first < 1:
            raise InputError(f"--layers {text}: layers are counted from 1")
        if last > _MOST_LAYERS:
            raise InputError(f"--layers {text}: there is no layer {last}")
        if last < first:
            raise InputError(f"--layers {text}: {part} ends before it begins")
        indices.extend(range(first - 1, last))
    return indices


def measures_for(criterion: Criterion) -> tuple[str, ...]:
    """The measures that a criterion needs."""
    return ("removal",) if criterion == "removal" else ("similarity",)


def choose_layers(diagnosis: ModelDiagnosis, count: int, criterion: Criterion, *, consecutive: bool) -> list[int]:
    """Choose the layers whose removal should do least harm.

        angular     a run: the smallest d(l, count) (Gromov et al. 2024); a set: the smallest d(l, 1)
        influence   the smallest block influences (ShortGPT: Men et al. 2024); a run: the smallest sum
        removal     the smallest performance drops of single layers; a run: of the run together

    Args:
        diagnosis: of the model, with `measures_for(criterion)`; for a run by removal with the series
            `removal_of_<count>`.
        count: how many layers.
        criterion: what to go by.
        consecutive: whether they must follow one another.

    Returns:
        Indices (from 0), in order.

    Raises:
        InputError: there are not so many layers.
    """
    check_removable(range(count), diagnosis.num_layers)
    if consecutive:
        return _cheapest_run(diagnosis, count, criterion)
    series = {
        "angular": lambda: diagnosis.angular_distance[0],
        "influence": lambda: diagnosis.series["block_influence"].values,
        "removal": lambda: diagnosis.series["removal"].values,
    }[criterion]()
    return sorted(sorted(range(diagnosis.num_layers), key=series.__getitem__)[:count])


def _cheapest_run(diagnosis: ModelDiagnosis, count: int, criterion: Criterion) -> list[int]:
    starts = range(diagnosis.num_layers + 1 - count)
    if criterion == "angular":
        cost = diagnosis.angular_distance[count - 1]
    elif criterion == "influence":
        influence = diagnosis.series["block_influence"].values
        cost = [sum(influence[start : start + count]) for start in starts]
    else:
        cost = diagnosis.series["removal" if count == 1 else f"removal_of_{count}"].values
    first = min(starts, key=cost.__getitem__)
    return list(range(first, first + count))


def describe_layers(indices: Sequence[int], stack: BlockStack) -> str:
    """What will be removed, in words that leave no doubt about where counting begins."""
    numbers = ", ".join(str(index + 1) for index in indices)
    zero_based = ", ".join(f"{stack.name}[{index}]" for index in indices)
    return (
        f"removing {len(indices)} of {len(stack.layers)} layers: {numbers} (counted from 1, both ends included; in "
        f"Python: {zero_based})"
    )


def select_layers(
    request: PruningRequest,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stack: BlockStack,
    report_stage: ReportStage | None = None,
) -> list[int]:
    """Return the indices (from 0) of the layers that a request means, measuring if it has to.

    Raises:
        InputError: they are not there, or the text cannot be measured on.
    """
    num_layers = len(stack.layers)
    if request.layers is not None:
        check_removable(request.layers, num_layers)
        return list(request.layers)
    if request.drop > num_layers:
        raise InputError(f"{request.drop} layers are to be removed, and the model has {num_layers}")
    check_removable(range(request.drop), num_layers)
    runs = (request.drop,) if request.by == "removal" and request.consecutive and request.drop > 1 else ()
    config = replace(
        request.measurement,
        performance_tokens=request.measurement.max_tokens,
        gradient_tokens=0,
        run_lengths=runs,
        measures=measures_for(request.by),
        layers=request.stack,
    )
    texts = open_corpus(request.text).documents()
    diagnosis = diagnose_model(model, tokenizer, texts, config, report_stage=report_stage)
    return choose_layers(diagnosis, request.drop, request.by, consecutive=request.consecutive)


def prune_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    indices: Sequence[int],
    out: Path,
    record: PruningRecord,
    *,
    layers: str | None = None,
) -> None:
    """Remove layers from a model, in place, and write it as an ordinary Hugging Face folder of its architecture.

    The folder holds the tokenizer, the generation config, and what was removed (`pruning.json`). Before it is written,
    it is made sure that a model of its config has just the parameters that are left.

    Args:
        model: it is changed.
        tokenizer: saved beside it.
        indices: of the layers, from 0.
        out: the folder to write, whole or not at all; it must not exist, or be empty.
        record: to be written beside it.
        layers: the name of the list of blocks, where it cannot be told.

    Raises:
        InputError: the layers are not there, the folder holds something or cannot be written, or the architecture keeps
            a list of layers that this library does not know.
    """
    require_new_folder(out)
    remove_blocks(find_block_stack(model, layers), indices)
    _check_config(model)
    save_model(model, tokenizer, out, files={PRUNING_FILE: to_text(record)}, mend="Make room, or choose another place")


def to_text(record: DataclassInstance) -> str:
    """Return JSON for people to read."""
    return json.dumps(asdict(record), indent=1) + "\n"


def _check_config(model: PreTrainedModel) -> None:
    """Build the model that the config describes, without weights, and compare parameters, and modules' own numbers.

    Such a number can depend on the place of a layer (GPT-2 can divide its attention by it), so that the reloaded model
    would be another than the one that was measured.
    """
    try:
        with torch.device("meta"):
            described = type(model)._from_config(type(model.config)(**model.config.to_dict()))
    except (ValueError, TypeError, RuntimeError, LookupError) as error:
        raise InputError(
            f"the config of a {type(model).__name__} with fewer layers is not valid ({error}): this architecture keeps "
            "something for each layer that cannot be shortened"
        ) from error
    expected = {name: parameter.shape for name, parameter in described.named_parameters()}
    found = {name: parameter.shape for name, parameter in model.named_parameters()}
    if expected != found:
        differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise InputError(
            f"a {type(model).__name__} of the shortened config would have other parameters than are left "
            f"({', '.join(differing[:3])} ...): its layers differ from each other by a rule of the config"
        )
    for (name, module), (_, other) in zip(model.named_modules(), described.named_modules(), strict=True):
        for attribute, value in _numbers(module).items():
            if attribute in (there := _numbers(other)) and there[attribute] != value:
                raise InputError(
                    f"in a {type(model).__name__} of the shortened config {name}.{attribute} would be "
                    f"{there[attribute]}, and is {value} in what is left: it depends on the place of the layer, so the "
                    "saved model would be another than the one that was measured"
                )


def _numbers(module: torch.nn.Module) -> dict[str, int | float]:
    """A module's own numbers and switches, beside those that change with use."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (int, float)) and not name.startswith("_") and name != "training"
    }
