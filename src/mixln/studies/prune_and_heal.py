"""Pruning and healing in one step, with the validation losses before, between and after. It can be interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from mixln.data.cache import Report
from mixln.device import default_device
from mixln.errors import InputError
from mixln.measure import EvaluationLoss
from mixln.measure.pruning import without_blocks
from mixln.models.anatomy import BlockStack
from mixln.models.causal import is_causal_language_model
from mixln.models.companions import companions_of
from mixln.models.load import load_config
from mixln.records import decode, read_json, to_text
from mixln.storage import disk_errors, put_on_disk, require_new_folder, whole_folder, write_file
from mixln.studies.prune import describe_layers, find_prunable_stack, measure_cost, select_layers
from mixln.studies.pruned_folder import open_for_pruning, prune_model
from mixln.studies.pruning_request import HEALING_FILE, PRUNING_FILE, PruningRecord, PruningRequest
from mixln.studies.stages import ReportStage
from mixln.studies.work_folder import TrainingWork, row_length
from mixln.tasks.fine_tuning import FineTuning, model_fingerprint
from mixln.tasks.healing_config import HealingConfig
from mixln.tasks.validation import validation_loss
from mixln.training import MODEL_FOLDER, ReportStep, differences, train
from mixln.training.saved_checkpoint import describe_kept

_LEAST_LOST = 0.01
PRUNED_FOLDER = "pruned"


@dataclass(frozen=True)
class HealingReport:
    """What `healing.json` says. Losses are of the same text, in nats per token, of the models as they are saved.

    Attributes:
        text: trained on.
        source_sha256: of config and weights of the model before pruning; None: it came from the hub.
        validation_tokens: that the losses are over.
        loss_before: of the whole model.
        loss_pruned: without the removed layers.
        loss_healed: after training; None: training is not finished.
        train_tokens: predicted in training.
        config: how it was trained.
        data_fingerprint: of the prepared text.
        precision: of training and of the losses, and why; empty in older files.
    """

    text: str
    source_sha256: str | None
    validation_tokens: int
    loss_before: float
    loss_pruned: float
    loss_healed: float | None
    train_tokens: int
    config: HealingConfig
    data_fingerprint: str
    precision: str = ""

    @property
    def recovered(self) -> float | None:
        """The part of the loss of pruning that healing took back: (pruned - healed) / (pruned - before).

        None if pruning cost less than 0.01 nats: then the ratio says nothing.
        """
        lost = self.loss_pruned - self.loss_before
        return None if self.loss_healed is None or lost < _LEAST_LOST else (self.loss_pruned - self.loss_healed) / lost

    @property
    def sentence(self) -> str:
        """The losses, in a line; of a model that is healed."""
        recovered = ""
        if self.recovered is not None and self.recovered > 1:
            recovered = " (below the loss before pruning: the text has taught the model more than pruning cost)"
        elif self.recovered is not None:
            recovered = f" ({self.recovered:.0%} of what pruning cost is recovered)"
        return (
            f"validation loss {self.loss_before:.4f} before, {self.loss_pruned:.4f} after pruning, "
            f"{self.loss_healed:.4f} after healing on {self.train_tokens:,} tokens{recovered}"
        )


def _source_fingerprint(source: str) -> str | None:
    return model_fingerprint(Path(source)) if Path(source).is_dir() else None


def healing_folder(out: str | Path) -> Path:
    """The folder of the run that makes `out`, beside it."""
    out = Path(out)
    return out.with_name(f"{out.name}.healing")


class PruneAndHeal(TrainingWork):
    """Prune a model, train the rest further, and write it as a Hugging Face folder.

    `prepare`, `prune` and `heal`, in this order, inside a `with` block, in which no other process can work on the same.
    The pruned model, checkpoints and metrics lie in `healing_folder(out)`: called anew after an interruption, they go
    on there.

    Args:
        request: what to remove.
        config: how to train.
        corpus: to train on, as in `mixln train`.
        out: the folder to write; it must not exist, or be empty.

    Attributes:
        record: what was removed; known once `prune` is done.

    Raises:
        InputError: `out` holds something, or a number is out of range.
    """

    record: PruningRecord

    def __init__(self, request: PruningRequest, config: HealingConfig, corpus: str, out: str | Path) -> None:
        out = Path(out)
        require_new_folder(out)
        recipe = config.recipe(corpus, request.source, row_length(request.source, config.sequence_length))
        recipe = replace(recipe, data=replace(recipe.data, text_field=request.text_field))
        super().__init__(recipe, load_config(request.source), out, healing_folder(out))
        self._request = request
        self._config = config
        self._pruned = self._folder / PRUNED_FOLDER

    def prune(self, say: Report, report_stage: ReportStage | None = None, *, device_map: str | None = None) -> None:
        """Measure the losses before and after pruning, and write the pruned model, unless it is there.

        Args:
            say: told what will be removed, before anything is written.
            report_stage: progress of measuring.
            device_map: see `open_for_pruning`.

        Raises:
            InputError: as `prune_model`; the model predicts no next token; or the folder of the run is of another one.
        """
        if not self._pruned.exists():
            model = open_for_pruning(self._request.source, device=default_device(), device_map=device_map)
            if not is_causal_language_model(model):
                raise InputError(
                    f"{self._request.source} predicts no next token, so it cannot be healed: leave `heal` out"
                )
            stack = find_prunable_stack(model, self._request.stack)
            indices = select_layers(self._request, model, stack, say, report_stage)
            say(describe_layers(indices, stack))
            cost = measure_cost(self._request, model, stack, indices, say, report_stage)
            # first, so that there is a report wherever there is a pruned model
            write_file(self._folder / HEALING_FILE, to_text(self._losses(model, stack, indices)))
            prune_model(self._request, stack, indices, self._pruned, cost)
        self.record, self._report = _read(self._folder, self._pruned)
        if changes := self._changes():
            raise InputError(
                f"{self._folder} holds another healing ({'; '.join(changes)}). Delete it, or choose another place than "
                f"{self._out}"
            )
        say(
            f"validation loss {self._report.loss_before:.4f} before pruning, {self._report.loss_pruned:.4f} after: "
            f"{self._pruned}"
        )

    def heal(self, report_step: ReportStep | None = None) -> HealingReport:
        """Train, and write the folder, with `pruning.json` and `healing.json`.

        Raises:
            InputError, TrainingInterrupted, TrainingDivergedError: as `mixln.training.train`.
        """
        task = FineTuning(self._pruned, self.recipe, self._data, self._config.low_rank)
        trained = train(task, self._folder, report_step, precision=self.precision)
        healed = self._loss(trained.model)
        report = replace(self._report, loss_healed=healed.mean, train_tokens=trained.train_tokens)
        model = self._folder / MODEL_FOLDER
        fix = f"Make room, and run the same command again: the healed model is in {model}"
        with disk_errors(f"{self._out} could not be written", fix), whole_folder(self._out) as temporary:
            companions_of(self._pruned).copy_to(temporary)
            shutil.copytree(model, temporary, dirs_exist_ok=True)
            (temporary / PRUNING_FILE).write_text(to_text(self.record), encoding="utf-8")
            (temporary / HEALING_FILE).write_text(to_text(report), encoding="utf-8")
            put_on_disk(temporary)  # the model it was copied from is removed next
        shutil.rmtree(model)
        return report

    def describe_kept(self) -> str:
        """What is kept if the work ends now, in words."""
        if not self._pruned.exists():
            return "nothing was written"
        return f"the pruned model is kept in {self._pruned}, and {describe_kept(self._folder)}"

    def _loss(self, model: PreTrainedModel) -> EvaluationLoss:
        batch_size = self.recipe.evaluation_batch_size
        return validation_loss(model, self._data, batch_size, self.precision.autocast_dtype)

    def _losses(self, model: PreTrainedModel, stack: BlockStack, indices: Sequence[int]) -> HealingReport:
        before = self._loss(model)
        with without_blocks(stack, indices):
            after = self._loss(model)
        return HealingReport(
            text=self.recipe.data.corpus,
            source_sha256=_source_fingerprint(self._request.source),
            validation_tokens=before.num_tokens,
            loss_before=before.mean,
            loss_pruned=after.mean,
            loss_healed=None,
            train_tokens=0,
            config=self._config,
            data_fingerprint=self._data.fingerprint,
            precision=str(self.precision),
        )

    def _changes(self) -> list[str]:
        """How this request differs from the one that the folder was begun with."""
        changes = _changes(self.record, self._report, self._request, self._config)
        # other numbers of tokens are other texts, but not what a user changed
        if not changes and self._report.data_fingerprint != self._data.fingerprint:
            return ["the text to heal on has changed"]
        return changes


def finished_healing(
    request: PruningRequest, config: HealingConfig, corpus: str, out: Path
) -> tuple[PruningRecord, HealingReport]:
    """Return what was removed and the losses, of a healing of the same request that is finished.

    Args:
        request: what to remove.
        config: how to train.
        corpus: to train on.
        out: the folder that it has written.

    Raises:
        InputError: it was another request, or the folder is damaged.
    """
    record, report = _read(out, out)
    changes = [*differences({"corpus": report.text}, {"corpus": corpus}), *_changes(record, report, request, config)]
    if changes:
        raise InputError(
            f"{out} exists already, and holds another healing ({'; '.join(changes)}). Delete it, or choose another "
            "place"
        )
    return record, report


def _changes(record: PruningRecord, report: HealingReport, request: PruningRequest, config: HealingConfig) -> list[str]:
    """How a request differs from one that was made."""
    if request.layers is None and request.drop != len(record.removed_layers):
        return [f"{len(record.removed_layers)} layers were removed, are to be {request.drop}"]
    indices = request.indices or [number - 1 for number in record.removed_layers]
    asked = request.record(indices, record.num_layers_before)
    asked = replace(asked, version=record.version, left_out=record.left_out, cost=record.cost)
    begun = {**asdict(record), "source's content": report.source_sha256, **asdict(report.config)}
    source = _source_fingerprint(request.source)
    return list(differences(begun, {**asdict(asked), "source's content": source, **asdict(config)}))


def _read(folder: Path, pruned: Path) -> tuple[PruningRecord, HealingReport]:
    """What a pruned model is, and its losses, from the folder of the run or of its result.

    Raises:
        InputError: the files that say so are damaged.
    """
    try:
        record = read_json(pruned / PRUNING_FILE)
        report = read_json(folder / HEALING_FILE)
        return (
            decode(PruningRecord, record, PRUNING_FILE, null_is_nan=True),
            decode(HealingReport, report, HEALING_FILE, null_is_nan=True),
        )
    except (OSError, InputError) as error:
        raise InputError(f"{folder} is damaged ({error}). Delete it to begin anew") from error
