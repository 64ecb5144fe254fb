"""`--then finetune=DATA`: every model is fine-tuned on the same rows, with the seed of its run."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mixln.announce import announce
from mixln.data.example_data import ExampleData, check_sources, prepare_examples
from mixln.models.load import load_config
from mixln.progress import TrainingProgress
from mixln.records import decode, read_json, to_text
from mixln.report.statistics import summarize_step
from mixln.report.step_results import Quantity, StepResult, StepRun
from mixln.storage import claim_folder, write_file
from mixln.studies.fine_tuned_model import (
    FineTuningPlan,
    example_request,
    run_fine_tuning,
    sentences_on_examples,
)
from mixln.studies.steps.step import ChosenRun, ModelsToCome, Step, StepPlace
from mixln.studies.work_folder import fitting_row_length, precision_of_further_training
from mixln.tasks.fine_tuning import model_fingerprint
from mixln.tasks.fine_tuning_config import FineTuningConfig
from mixln.training import MODEL_FOLDER, Precision, ReportStep, TrainingDivergedError

OUTCOME_FILE = "outcome.json"

_NOT_DECIDING = ("seed", "checkpoint_every")
"""Fields that do not decide what a step does: the seed is that of each run."""

_UNIT = "nats per token of held-out answers"
_BEFORE, _AFTER = Quantity("loss before", _UNIT, False), Quantity("loss after", _UNIT, False)


@dataclass(frozen=True)
class Outcome:
    """What came of the fine-tuning of one model.

    Attributes:
        values: by the names of the quantities.
        remark: why there are none; empty: there are.
    """

    values: dict[str, float]
    remark: str


class FineTuningStep(Step):
    """Fine-tunes every model on the same packed rows in the same order for the same seed.

    Args:
        written: as it was asked for.
        data: see `mixln.finetune`, as the other arguments.
        config: how; its seed is not used.
        validation_data: examples that are held out.
        weights: of each of the data.
        template: of prompts.

    Raises:
        InputError: there are no such files or templates, or they cannot be used.
    """

    name = "finetune"
    makes_models = True

    def __init__(
        self,
        written: str,
        *,
        data: Sequence[str],
        config: FineTuningConfig,
        validation_data: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        template: str | Path | None = None,
    ) -> None:
        self.written = written
        self._config = config
        self._request = example_request(data, config, validation_data, weights, template)
        check_sources(self._request)

    def prepare(self, models: ModelsToCome) -> ModelsToCome:
        """Put all examples into rows, which every run will have."""
        tokenizer = copy.deepcopy(models.tokenizer)  # it may get a chat template
        length = fitting_row_length(
            tokenizer, models.config, models.build, self._config.sequence_length, "a model of the comparison"
        )
        self._length = length
        self._data: ExampleData = prepare_examples(replace(self._request, sequence_length=length), tokenizer)
        return replace(models, tokenizer=tokenizer)

    def identity(self) -> dict[str, Any]:
        """The rows, where they are from, and the settings."""
        settings = {name: value for name, value in asdict(self._config).items() if name not in _NOT_DECIDING}
        return {"data": self._data.fingerprint, "sources": list(self._request.sources), "config": settings}

    def run(self, runs: Sequence[ChosenRun], place: StepPlace) -> tuple[StepResult, list[ChosenRun]]:
        """Fine-tune one model after the other."""
        claim_folder(place.folder)
        results: list[StepRun] = []
        tuned: list[ChosenRun] = []
        precision: Precision | None = None
        steps = self._plan(runs[0], Path()).recipe.steps
        with TrainingProgress(steps, len(runs), shown=place.shown) as shown:
            for number, run in enumerate(runs):
                outcome, folder = Outcome({}, ""), None
                if run.model is not None:
                    # one whose model is another one is another run
                    folder = place.folder / f"{run.name}_{model_fingerprint(run.model)[:8]}"
                    plan = self._plan(run, run.model)
                    precision = precision or precision_of_further_training(
                        plan.recipe, load_config(str(run.model)), place.folder
                    )
                    shown.start_run(number, f"[{number + 1}/{len(runs)}] fine-tuning {run.placement}, seed {run.seed}")
                    outcome = _tuned(plan, folder, precision, shown.step)
                remark = "; ".join(filter(None, (run.remark, outcome.remark)))
                results.append(StepRun(run.placement, run.seed, run.learning_rate, outcome.values, remark))
                model = None if folder is None or outcome.remark else folder / MODEL_FOLDER
                tuned.append(replace(run, model=model, remark=remark))
        quantities = [_BEFORE, _AFTER]
        summaries = summarize_step(results, quantities, place.baseline)
        folder = f"{place.folder.relative_to(place.out).as_posix()}/"
        names = ", ".join(Path(source).name for source in self._request.sources)
        result = StepResult(
            self.written,
            f"Fine-tuning on {names}",
            quantities,
            results,
            summaries,
            facts=self._facts(steps, precision),
            links={"fine-tuned models": folder},
        )
        return result, tuned

    def _plan(self, run: ChosenRun, model: Path) -> FineTuningPlan:
        config = replace(self._config, seed=run.seed)
        # the name stands in the run's record, which is to be the same wherever the folder lies
        recipe = config.recipe(" ".join(self._request.sources), run.name, len(self._data.train), self._length)
        return FineTuningPlan(model, self._data, recipe, config)

    def _facts(self, steps: int, precision: Precision | None) -> dict[str, str]:
        data, config = self._data, self._config
        facts = {
            "Examples": "; ".join(sentences_on_examples(data.counts)),
            "Rows": (
                f"{len(data.train):,} of {self._length} tokens, {data.train.filled:.0%} full; "
                f"{data.train.num_predicted_tokens:,} tokens of answers an epoch, "
                f"{data.validation.num_predicted_tokens:,} held out"
            ),
            "Training": (
                f"{steps:,} steps of {config.batch_size} rows ({config.epochs:g} epochs), "
                f"{'all weights' if config.low_rank is None else f'LoRA of rank {config.low_rank.rank}'}, "
                f"learning rate {self._plan(ChosenRun('', '', 0, 0, None), Path()).recipe.optimizer.learning_rate:g}; "
                "the order of the rows depends on the seed alone"
            ),
        }
        if precision is not None:
            facts["Precision"] = f"{precision.name}: {precision.reason}"
        return facts


def _tuned(plan: FineTuningPlan, folder: Path, precision: Precision, report_step: ReportStep) -> Outcome:
    """Fine-tune one model, or return what an earlier call found."""
    path = folder / OUTCOME_FILE
    if path.is_file():
        found = decode(Outcome, read_json(path), str(path))
        if found.remark or (folder / MODEL_FOLDER).is_dir():
            announce(("finished", f"{folder.name}: fine-tuned already; nothing to do"))
            return found
    try:
        report = run_fine_tuning(plan, folder, report_step, precision).report
        values = {_BEFORE.name: report.loss_before, _AFTER.name: report.loss_after}
        diverged = "" if all(map(math.isfinite, values.values())) else "the loss is no finite number"
    except TrainingDivergedError as error:
        values, diverged = {}, str(error)
    remark = f"its fine-tuning diverged ({diverged}), so it is left out from there on" if diverged else ""
    outcome = Outcome({} if diverged else values, remark)
    write_file(path, to_text(outcome))
    return outcome
