"""Removing the norms of a model, with the losses before, after, and of an equally long control run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from mixln.device import default_device
from mixln.errors import InputError
from mixln.exchange import save_self_contained
from mixln.measure import EvaluationLoss
from mixln.models.companions import model_folder
from mixln.models.load import load_causal_lm, load_plausible_config
from mixln.models.placed import PlacedPreTrainedModel
from mixln.records import decode, read_json
from mixln.report.norm_removal import CONTROL, NORM_FREE, NormRemovalReport, RemovalRecord, removal_figure
from mixln.report.norm_removal_page import write_removal_page
from mixln.storage import disk_errors, require_new_folder, whole_folder, write_file
from mixln.studies.work_folder import TrainingWork, row_length
from mixln.tasks import FineTuning, validation_loss
from mixln.tasks.fine_tuning import model_fingerprint
from mixln.tasks.norm_removal.config import REPORT_FILE, NormRemovalConfig
from mixln.tasks.norm_removal.install import check_norms_removable
from mixln.tasks.norm_removal.task import NormRemoval, removable_plan
from mixln.training import MODEL_FOLDER, ReportStep, TrainedModel, differences, read_metrics, train
from mixln.training.loop import RESULT_FILE
from mixln.training.run_folder import claimed_folder
from mixln.training.saved_checkpoint import describe_kept
from mixln.version import __version__

FIGURE_FILE = "norm_removal.png"
_ORIGINAL_FILE = "original.json"
_ORIGINAL_KEYS = {"data", "sha256", "precision", "total_loss", "num_tokens"}
_PRECISION = "float32"
"""Of the three losses, whatever it is in training: they differ by little."""
_REMOVAL, _CONTROL = "removal", "control"
"""Folders of the two runs."""


def removal_folder(out: str | Path) -> Path:
    """The folder of the runs that make `out`, beside it."""
    out = Path(out)
    return out.with_name(f"{out.name}.removal")


def finished_removal(
    source: str, config: NormRemovalConfig, corpus: str, out: str | Path, name: str = "", *, with_control: bool = True
) -> NormRemovalReport:
    """Return the report of a removal of the same request that is finished.

    Args:
        source: see `RemoveNorm`.
        config: see there.
        corpus: see there.
        out: the folder that it has written.
        name: see there.
        with_control: whether the control is asked for.

    Raises:
        InputError: it was another request, or the folder is damaged.
    """
    out = Path(out)
    try:
        report = decode(NormRemovalReport, read_json(out / REPORT_FILE), REPORT_FILE, null_is_nan=True)
    except (OSError, InputError) as error:
        raise InputError(f"{out} is damaged ({error}). Delete it to begin anew") from error
    made = {"source": report.source, "text": report.text, "source's content": report.source_sha256, **report.config}
    sha256 = model_fingerprint(model_folder(source))
    asked = {"source": name or source, "text": corpus, "source's content": sha256, **asdict(config)}
    control = {"control": report.loss_control is not None}, {"control": with_control}
    made, asked = json.loads(json.dumps([{**made, **control[0]}, {**asked, **control[1]}]))
    if changes := list(differences(made, asked)):
        raise InputError(
            f"{out} exists already, and holds another removal of norms ({'; '.join(changes)}). Delete it, or choose "
            "another place"
        )
    return report


class RemoveNorm(TrainingWork):
    """Remove the norms of a model during further training, and write the result as a Hugging Face folder.

    `prepare`, `check_runs`, `measure_original`, `remove`, `train_control`, `report`, `draw` and `write`, in this order,
    inside a `with` block, in which no other process can work on the same. Runs and checkpoints lie in
    `removal_folder(out)`: called anew after an interruption, they go on there. `check_runs`, `train_control` and `draw`
    may be left out.

    Args:
        source: Hugging Face folder, or name on the hub, of a language model with Pre-LN.
        config: how.
        corpus: to train on, as in `mixln train`.
        out: the folder to write; it must not exist, or be empty.
        name: what the model is called in `norm_removal.json`; empty: as `source`.

    Raises:
        InputError: `out` holds something, the model's norms cannot be removed, or the schedule is impossible.
    """

    def __init__(self, source: str, config: NormRemovalConfig, corpus: str, out: str | Path, name: str = "") -> None:
        out = Path(out)
        require_new_folder(out)
        model_config = load_plausible_config(source)
        plan, placement = removable_plan(model_config)
        check_norms_removable(plan, placement)
        recipe = config.recipe(corpus, source, row_length(source, config.sequence_length))
        self._num_layers = len(plan.blocks)
        self._schedule = config.removal_schedule(self._num_layers)
        super().__init__(recipe, model_config, out, removal_folder(out))
        self._source, self._name, self._config = model_folder(source), name or source, config
        self._has_control = False
        self._trained: TrainedModel | None = None

    def check_runs(self, *, with_control: bool) -> None:
        """Make sure, before hours of training, that runs that were started earlier have the same settings.

        Raises:
            InputError: one is not.
        """
        tasks: dict[str, FineTuning] = {_REMOVAL: self._removal()}
        if with_control:
            tasks[_CONTROL] = self._control()
        for name, task in tasks.items():
            if (folder := self._folder / name).exists():
                with claimed_folder(folder, task):
                    pass

    def measure_original(self) -> EvaluationLoss:
        """Return the validation loss of the model as it is, measured once."""
        self._source_sha256 = model_fingerprint(self._source)
        key = {"data": self._data.fingerprint, "sha256": self._source_sha256, "precision": _PRECISION}
        file = self._folder / _ORIGINAL_FILE
        try:
            known = read_json(file)
        except (OSError, InputError):  # missing or damaged
            known = None
        if not isinstance(known, dict) or known.keys() != _ORIGINAL_KEYS or not key.items() <= known.items():
            loss = self._loss_of(self._source)
            known = {**key, "total_loss": loss.total_loss, "num_tokens": loss.num_tokens}
            write_file(file, json.dumps(known) + "\n")
        self._original = EvaluationLoss(float(known["total_loss"]), int(known["num_tokens"]))
        return self._original

    def remove(self, report_step: ReportStep | None = None) -> None:
        """Train, and remove the norms on the way.

        Raises:
            InputError, TrainingInterrupted, TrainingDivergedError: as `mixln.training.train`; or the steps are over
                before all norms are gone.
        """
        folder = self._folder / _REMOVAL
        self._trained = train(self._removal(), folder, report_step, precision=self.precision)

    def train_control(self, report_step: ReportStep | None = None) -> None:
        """Train the model equally long on the same batches, with its norms.

        Raises:
            InputError, TrainingInterrupted, TrainingDivergedError: as `mixln.training.train`.
        """
        train(self._control(), self._folder / _CONTROL, report_step, precision=self.precision)
        self._has_control = True

    def report(self) -> NormRemovalReport:
        """Measure the result: the losses are those of the models as they were saved, computed in float32.

        Raises:
            InputError: the record of what was removed when is missing or damaged.
        """
        trained, run = self._trained, self._folder / _REMOVAL
        assert trained is not None, "nothing has been removed yet"
        norm_free = run / MODEL_FOLDER
        result, removals = trained.result or {}, self._schedule.removals(self._num_layers)
        if not {"difference", "largest_logit", "made", "waited_steps", "num_roll_backs"} <= result.keys():
            raise InputError(
                f"{run / RESULT_FILE} is missing or damaged, so it is not known which norm was removed when. "
                f"The model without norms is whole: {norm_free}. To make it anew, with its report, delete {run}"
            )
        return NormRemovalReport(
            source=self._name,
            source_sha256=self._source_sha256,
            text=self.recipe.data.corpus,
            validation_tokens=self._original.num_tokens,
            loss_original=self._original.mean,
            loss_control=self._loss_of(self._folder / _CONTROL / MODEL_FOLDER).mean if self._has_control else None,
            loss_norm_free=self._loss_of(norm_free).mean,
            train_tokens=trained.train_tokens,
            precision=str(self.precision),
            removals=tuple(
                RemovalRecord(removal.target, None if removal.layer is None else removal.layer + 1, step)
                for removal, step in zip(removals, result["made"], strict=True)
            ),
            waited_steps=int(result["waited_steps"]),
            num_roll_backs=int(result["num_roll_backs"]),
            folding_difference=float(result["difference"]),
            largest_logit=float(result["largest_logit"]),
            config=asdict(self._config),
            data_fingerprint=self._data.fingerprint,
            version=__version__,
        )

    def write(self, report: NormRemovalReport) -> None:
        """Write the norm-free model, with its code, its tokenizer and its report as `norm_removal.json`.

        Raises:
            InputError: the folder cannot be written.
        """
        model, tokenizer = load_causal_lm(str(self._folder / _REMOVAL / MODEL_FOLDER))
        assert isinstance(model, PlacedPreTrainedModel)
        fix = "Make room, and run the same command again: the trained model is kept"
        with disk_errors(f"{self._out} could not be written", fix), whole_folder(self._out) as temporary:
            save_self_contained(model, temporary)
            tokenizer.save_pretrained(temporary)
            (temporary / REPORT_FILE).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")

    def draw(self, report: NormRemovalReport) -> Path:
        """Draw the losses with every removal marked, beside the runs, and return the file; and write the page."""
        curves = {NORM_FREE: read_metrics(self._folder / _REMOVAL)}
        if self._has_control:
            curves[CONTROL] = read_metrics(self._folder / _CONTROL)
        path = self._folder / FIGURE_FILE
        removal_figure(curves, report.removals, report.loss_original).figure.savefig(path, dpi=150)
        write_removal_page(report, curves, self._folder, self._out)
        return path

    def describe_kept(self) -> str:
        """What is kept if the work ends now, in words."""
        runs = [self._folder / name for name in (_REMOVAL, _CONTROL) if (self._folder / name).exists()]
        return describe_kept(runs[-1]) if runs else "nothing was written"

    def _removal(self) -> NormRemoval:
        config = self._config
        return NormRemoval(
            self._source,
            self.recipe,
            self._data,
            self._schedule,
            self._num_layers,
            config.spike_policy,
            auxiliary_weight=config.auxiliary_weight,
        )

    def _control(self) -> FineTuning:
        return FineTuning(self._source, self.recipe, self._data)

    def _loss_of(self, folder: Path) -> EvaluationLoss:
        model, _ = load_causal_lm(str(folder))
        nn.Module.to(model, default_device(), torch.float32)
        return validation_loss(model, self._data, self.recipe.evaluation_batch_size)
