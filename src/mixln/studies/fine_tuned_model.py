"""Fine-tuning a model on examples, with the loss of held-out answers before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixln.data.example_data import ExampleCounts, ExampleData, ExampleRequest, prepare_examples
from mixln.data.prompts import load_template
from mixln.data.tokenizer import load_training_tokenizer
from mixln.device import default_device, is_main_process
from mixln.errors import InputError
from mixln.measure import EvaluationLoss
from mixln.models.companions import model_folder
from mixln.models.load import load_bare_causal_lm, load_config
from mixln.records import encode, to_text
from mixln.storage import write_file
from mixln.studies.kept_measures import MEASURED_FOLDER
from mixln.studies.kept_parts import KeptParts
from mixln.studies.saved_model import SavedModel
from mixln.studies.work_folder import precision_of_further_training, row_length
from mixln.tasks import FineTuning, validation_loss
from mixln.tasks.fine_tuning_config import FineTuningConfig
from mixln.tasks.recipe import TextTrainingConfig
from mixln.training import MODEL_FOLDER, Precision, ReportStep, train

REPORT_FILE = "finetuning.json"


def sentences_on_examples(sources: Mapping[str, ExampleCounts]) -> Iterator[str]:
    """What became of the examples of each source."""
    for source, counts in sources.items():
        words = [f"{counts.read:,} examples", f"{counts.validation:,} held out"]
        words += [f"{counts.shared:,} of these with a prompt that is trained on too"] if counts.shared else []
        words += [f"{counts.dropped:,} too long and left out"] if counts.dropped else []
        words += [f"{counts.cut:,} with the beginning of the prompt cut off"] if counts.cut else []
        words += [f"{counts.apart:,} with prompt and answer in tokens apart"] if counts.apart else []
        yield f"{source}: {', '.join(words)}"


@dataclass(frozen=True)
class FineTuningReport:
    """What a fine-tuning did.

    Attributes:
        sources: of the examples, with what became of them.
        rows: packed rows of an epoch.
        filled: share of the places in them that are no padding.
        answer_tokens: that an epoch learns.
        validation_tokens: of answers that are held out.
        steps: of the run.
        loss_before: of the held-out answers, nats per token, by the model as it was.
        loss_after: the same, by the model as it is now.
    """

    sources: dict[str, ExampleCounts]
    rows: int
    filled: float
    answer_tokens: int
    validation_tokens: int
    steps: int
    loss_before: float
    loss_after: float

    @property
    def sentences(self) -> Iterator[str]:
        """What became of the examples, and the losses."""
        yield from sentences_on_examples(self.sources)
        yield (
            f"{self.rows:,} rows, {self.filled:.0%} full; {self.answer_tokens:,} tokens of answers an epoch; "
            f"{self.steps:,} steps"
        )
        yield (
            f"loss of held-out answers {self.loss_before:.4f} before, {self.loss_after:.4f} after, over "
            f"{self.validation_tokens:,} tokens"
        )


@dataclass(frozen=True, repr=False)
class FineTunedModel(SavedModel):
    """A fine-tuned model; its table has one row.

    Attributes:
        report: what was done, and the losses (`finetuning.json`).
        run: the folder of the run: metrics, recipe, the model.
    """

    report: FineTuningReport
    run: Path

    def parts(self) -> Iterator[str]:
        """What became of the examples, the losses, and where the model is."""
        yield from self.report.sentences
        yield f"model: {self.folder}"

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The losses and the counts."""
        report = encode(replace(self.report, sources={}), "report")
        del report["sources"]
        return [{"folder": str(self.folder), **report}]


@dataclass(frozen=True)
class FineTuningPlan:
    """All that a fine-tuning is made of.

    Attributes:
        folder: of the model.
        data: examples in rows.
        recipe: of the run.
        config: what the user has set.
    """

    folder: Path
    data: ExampleData
    recipe: TextTrainingConfig
    config: FineTuningConfig


def plan_fine_tuning(source: str, request: ExampleRequest, config: FineTuningConfig) -> FineTuningPlan:
    """Read the examples, and settle the configuration of the run.

    Args:
        source: Hugging Face folder, or name on the hub, of a causal language model.
        request: which examples; its `sequence_length` is that of the config, or as much as the model takes.
        config: how.

    Raises:
        InputError: the model or the examples cannot be used.
    """
    length = row_length(source, config.sequence_length)
    folder = model_folder(source)
    data = prepare_examples(replace(request, sequence_length=length), load_training_tokenizer(str(folder)))
    recipe = config.recipe(" ".join(request.sources), source, len(data.train), length)
    return FineTuningPlan(folder, data, recipe, config)


def example_request(
    sources: Sequence[str],
    config: FineTuningConfig,
    validation_data: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    template: str | Path | None = None,
) -> ExampleRequest:
    """Return which examples a command was asked to fine-tune on.

    Raises:
        InputError: there is no source, or no such template.
    """
    if not sources:
        raise InputError("`data` is empty: give at least one file")
    return ExampleRequest(
        sources=sources,
        validation_sources=validation_data or (),
        validation_fraction=config.validation_fraction,
        weights=weights,
        template=None if template is None else load_template(str(template)),
        too_long=config.too_long,
    )


def run_fine_tuning(
    plan: FineTuningPlan, out: Path, report_step: ReportStep | None = None, precision: Precision | None = None
) -> FineTunedModel:
    """Fine-tune a model, and write it as a Hugging Face folder, `out/model`.

    Args:
        plan: what `plan_fine_tuning` gave.
        out: folder of the run; an interrupted one goes on.
        report_step: progress.
        precision: of this run and others together; None: it is decided for this one.

    Raises:
        InputError: the folder holds another run.
        TrainingInterrupted, TrainingDivergedError: as `mixln.training.train`.
    """
    data, recipe = plan.data, plan.recipe
    precision = precision or precision_of_further_training(recipe, load_config(str(plan.folder)), out)
    task = FineTuning(plan.folder, recipe, data, plan.config.low_rank)
    before = _loss_before(plan, task, precision, out)
    trained = train(task, out, report_step, precision=precision)
    report = FineTuningReport(
        dict(data.counts),
        len(data.train),
        data.train.filled,
        data.train.num_predicted_tokens,
        data.validation.num_predicted_tokens,
        recipe.steps,
        before,
        trained.validation.mean,
    )
    if is_main_process():
        write_file(out / REPORT_FILE, to_text(report))
    return FineTunedModel(out / MODEL_FOLDER, report, out)


def _loss_before(plan: FineTuningPlan, task: FineTuning, precision: Precision, out: Path) -> float:
    """The loss of the held-out answers by the model as it is; measured once for a run."""

    def measure() -> EvaluationLoss:
        model = load_bare_causal_lm(str(plan.folder))
        nn.Module.to(model, default_device(), torch.float32)
        return validation_loss(model, plan.data, plan.recipe.evaluation_batch_size, precision.autocast_dtype)

    def identify() -> dict[str, Any]:
        return {"model": task.identity()["model"], "data": plan.data.fingerprint, "precision": str(precision)}

    kept = KeptParts(EvaluationLoss, out / MEASURED_FOLDER if is_main_process() else None, identify, "losses")
    return kept.take("before", measure).mean
