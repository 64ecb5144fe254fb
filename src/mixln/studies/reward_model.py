"""Training a reward model on pairs, and what its accuracy on held-out prompts is worth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixln.announce import announce
from mixln.data.preferences import EncodedPair, PreferenceCounts, PreferenceData, PreferenceRequest, prepare_preferences
from mixln.device import default_device
from mixln.errors import InputError
from mixln.evaluation.preferences import (
    LengthBias,
    PairAccuracy,
    PairScores,
    RewardRange,
    holds_half,
    length_bias,
    pair_accuracy,
    reward_range,
    verdict,
)
from mixln.models.classifier import give_padding_token, load_classifier
from mixln.models.companions import model_folder
from mixln.models.encoding import require_embedded
from mixln.models.finite import require_finite_parameters
from mixln.models.load import load_tokenizer
from mixln.models.placed import PlacedConfig
from mixln.quiet import quiet_transformers
from mixln.records import decode, read_json, to_text
from mixln.storage import held_lock, write_file
from mixln.studies.kept_measures import MEASURED_FOLDER
from mixln.studies.kept_parts import KeptParts
from mixln.studies.saved_model import SavedModel
from mixln.studies.work_folder import row_length
from mixln.tasks.fine_tuning import model_fingerprint
from mixln.tasks.language_model import feed_forward_widths
from mixln.tasks.reward_config import RewardConfig
from mixln.tasks.reward_model import REPORT_FILE, RewardModel, TextForm, load_reward_model
from mixln.tasks.reward_training import train_reward_model
from mixln.tasks.trl_runs import CHECKPOINTS_FOLDER, claim_run, describe_kept_checkpoint, require_trl
from mixln.training import MODEL_FOLDER, Precision, ReportStep
from mixln.training.decisions import agree_on_precision
from mixln.training.distributed import Processes
from mixln.training.run_folder import fill_folder

RUN_FILE = "reward_run.json"
"""Of which run a folder is."""

_MAY_CHANGE = ("checkpoint_every",)
"""Fields of the configuration that the result does not depend on."""

ReportTexts = Callable[[str, int, int], object]
"""Called with what is scored, texts done, and texts in all."""


@dataclass(frozen=True)
class RewardReport:
    """A reward model, and what is known of it.

    Attributes:
        accuracy: share of held-out pairs whose preferred answer has the higher reward; a tie counts half.
        interval: of the accuracy, 95 %, clustered by prompt.
        pairs: that are held out.
        prompts: that they have; none of them is in the training data.
        holds_half: whether the interval holds 50 %: then the model is worth no more than a coin.
        verdict: what the accuracy can be told from, in words.
        ties: held-out pairs with two equal rewards.
        loss: of the held-out pairs, mean of -log sigmoid(r_chosen - r_rejected); a coin has 0.693.
        before: the accuracy with the head as it was drawn.
        loss_before: the loss then.
        length: how much of preferences and rewards is length.
        rewards: of the held-out answers.
        counts: what became of the pairs.
        train_pairs: that were learned.
        train_prompts: that they have.
        steps: of the run.
        form: how prompts and answers are written.
        sequence_length: tokens of a text at most.
        pad_token: of the tokenizer; it is not the end token.
        new_parameters: that the given model did not have.
        base: the given model.
        sources: of the pairs.
        seed: of the run.
        notes: what else is to be known.
        precision: that was computed in, and why; empty: an older version made the report.
    """

    accuracy: float
    interval: tuple[float, float]
    pairs: int
    prompts: int
    holds_half: bool
    verdict: str
    ties: int
    loss: float
    before: PairAccuracy
    loss_before: float
    length: LengthBias
    rewards: RewardRange
    counts: PreferenceCounts
    train_pairs: int
    train_prompts: int
    steps: int
    form: TextForm
    sequence_length: int
    pad_token: str
    new_parameters: tuple[str, ...]
    base: str
    sources: tuple[str, ...]
    seed: int
    notes: tuple[str, ...]
    precision: str = ""

    @property
    def sentences(self) -> Iterator[str]:
        """What became of the pairs, and what the accuracy is worth."""
        yield from describe_counts(self.counts, self.sequence_length)
        yield (
            f"{self.train_pairs:,} pairs of {self.train_prompts:,} prompts learned in {self.steps:,} steps; "
            f"{self.pairs:,} pairs of {self.prompts:,} other prompts held out"
        )
        yield (f"held-out accuracy {_share(self.accuracy, self.interval)}, loss {self.loss:.4f}: {self.verdict}")
        tied = f"; {self.ties:,} ties count half" if self.ties else ""
        yield (
            f"before training {_share(self.before.accuracy, self.before.interval)}, loss {self.loss_before:.4f} (a "
            f"coin: 50.0%, 0.6931){tied}"
        )
        yield from _describe_length(self.length)
        given = self.rewards
        yield (
            f"rewards of the held-out answers: {given.lowest:.3f} to {given.highest:.3f}, standard deviation "
            f"{given.deviation:.3f}"
        )
        yield from self.notes


@dataclass(frozen=True, repr=False)
class TrainedRewardModel(SavedModel):
    """A reward model; its table has one row.

    Attributes:
        report: what is known of it (`reward.json`, in its folder and in that of the run).
        run: the folder of the run.
    """

    report: RewardReport
    run: Path

    @cached_property
    def judge(self) -> RewardModel:
        """The model with its tokenizer, which gives rewards to answers; opened when it is first asked for."""
        return load_reward_model(self.folder)

    def parts(self) -> Iterator[str]:
        """What became of the pairs, what the accuracy is worth, and where the model is."""
        yield from self.report.sentences
        yield f"model: {self.folder}"

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Accuracy, loss and counts."""
        report = self.report
        low, high = report.interval
        return [
            {
                "folder": str(self.folder),
                "accuracy": report.accuracy,
                "low": low,
                "high": high,
                "pairs": report.pairs,
                "prompts": report.prompts,
                "verdict": report.verdict,
                "loss": report.loss,
                "accuracy_before": report.before.accuracy,
                "accuracy_of_the_longer": report.length.longer.accuracy,
                "length_correlation": report.length.correlation,
                "train_pairs": report.train_pairs,
                "steps": report.steps,
            }
        ]


@dataclass(frozen=True)
class RewardPlan:
    """All that the training of a reward model is made of.

    Attributes:
        source: name of the model, as it was given.
        folder: of the model.
        tokenizer: of the model; it may have got a chat template.
        data: pairs in tokens.
        sequence_length: tokens of a text at most.
        config: what the user has set.
        sources: of the pairs.
    """

    source: str
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    data: PreferenceData
    sequence_length: int
    config: RewardConfig
    sources: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """Return all that the result depends on, as JSON."""
        config = {name: value for name, value in asdict(self.config).items() if name not in _MAY_CHANGE}
        return json.loads(
            json.dumps(
                {
                    "model": model_fingerprint(self.folder),
                    "data": self.data.fingerprint,
                    "form": asdict(TextForm.of(self.data.form)),
                    "config": {**config, "sequence_length": self.sequence_length},
                }
            )
        )


def plan_reward_model(source: str, request: PreferenceRequest, config: RewardConfig) -> RewardPlan:
    """Read the pairs, and settle what is trained.

    Args:
        source: Hugging Face folder, or name on the hub, of a causal language model or a reward model.
        request: which pairs; its limit is that of the config, or as much as the model takes.
        config: how.

    Raises:
        InputError: the model or the pairs cannot be used, or TRL is not installed.
    """
    require_trl("a reward model")
    limit = row_length(source, config.sequence_length)
    folder = model_folder(source)
    tokenizer = load_tokenizer(str(folder))
    had_template = bool(tokenizer.chat_template)
    data = prepare_preferences(_with_limit(request, limit), tokenizer)
    form = TextForm.of(data.form)
    plain = form.name == "chat" and not had_template
    announce(
        (
            "form",
            f"{form.name}, 'User: ...', 'Assistant: ...', as the tokenizer has no chat template"
            if plain
            else form.name,
        ),
        *(("pairs", line) for line in describe_counts(data.counts, limit)),
    )
    return RewardPlan(source, folder, tokenizer, data, limit, config, (*request.sources, *request.validation_sources))


def run_reward_model(
    plan: RewardPlan, out: Path, report_step: ReportStep | None = None, report_texts: ReportTexts | None = None
) -> TrainedRewardModel:
    """Train a reward model, measure it on held-out prompts, and write it as a Hugging Face folder, `out/model`.

    Args:
        plan: what `plan_reward_model` gave.
        out: folder of the run; an interrupted one goes on, a finished one is read.
        report_step: progress of the training.
        report_texts: progress of the scoring.

    Raises:
        InputError: the folder holds another run, or the model cannot be used.
        TrainingInterrupted, TrainingDivergedError: as `train_reward_model`.
    """
    busy = f"another process is training in {out}. Wait for it, or choose another folder"
    with held_lock(out / ".lock", busy):
        claim_run(out, RUN_FILE, plan.identity())
        if not (out / MODEL_FOLDER).exists():
            _train(plan, out, report_step, report_texts)
        report = read_report(out / MODEL_FOLDER)
        write_file(out / REPORT_FILE, to_text(report))
        shutil.rmtree(out / CHECKPOINTS_FOLDER, ignore_errors=True)  # the model is whole
    return TrainedRewardModel(out / MODEL_FOLDER, report, out)


def read_report(folder: Path) -> RewardReport:
    """Return what is known of the reward model in a folder.

    Raises:
        InputError: nothing, or the file is damaged.
    """
    path = folder / REPORT_FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {REPORT_FILE}: it is no reward model of mixln reward, or is incomplete")
    return decode(RewardReport, read_json(path), REPORT_FILE)


def describe_kept(out: Path) -> str:
    """Return what an interrupted run has kept."""
    if (out / MODEL_FOLDER).exists():
        return f"the model is whole, in {out / MODEL_FOLDER}"
    return describe_kept_checkpoint(out)


def describe_counts(counts: PreferenceCounts, limit: int) -> Iterator[str]:
    """What became of the pairs, in words."""
    words = [f"{counts.read:,} pairs read"]
    left_out = {
        "with an empty answer, left out": counts.empty,
        "with two equal answers, left out": counts.identical,
        f"longer than {limit} tokens, left out": counts.too_long,
        f"longer than {limit} tokens, with the beginning of the prompt cut off": counts.cut,
        "left out of training, as their prompt is held out": counts.shared,
        "contradicted by another pair": counts.contradicted,
    }
    words += [f"{count:,} {what}" for what, count in left_out.items() if count]
    yield "; ".join(words)


def _with_limit(request: PreferenceRequest, limit: int) -> PreferenceRequest:
    return PreferenceRequest(**{**vars(request), "limit": limit})


def _train(plan: RewardPlan, out: Path, report_step: ReportStep | None, report_texts: ReportTexts | None) -> None:
    config, data = plan.config, plan.data
    model, new = load_classifier(str(plan.folder), seed=config.seed)
    tokenizer = plan.tokenizer
    require_embedded(_tokens(data), model, tokenizer)
    require_finite_parameters(model)
    has_new_token = give_padding_token(model, tokenizer)
    announce(
        ("new", ", ".join(new) or None),
        ("padding", f"{tokenizer.pad_token}, {'which is new' if has_new_token else 'as the tokenizer has it'}"),
    )
    rows = 2 * (config.micro_batch_size or config.batch_size)
    sizes = *feed_forward_widths(model.config), rows * plan.sequence_length
    precision = agree_on_precision(config.precision, sizes, out, Processes(default_device()))
    announce(("precision", precision))
    nn.Module.to(model, default_device())
    judge = RewardModel(model, tokenizer, data.form)
    kept = KeptParts(PairScores, out / MEASURED_FOLDER, plan.identity, "rewards")

    def score(stage: str) -> PairScores:
        return score_pairs(judge, data.held_out, rows, stage, report_texts)

    before = kept.take("before", lambda: score("rewards before"))
    train_reward_model(model, tokenizer, data.train, config, out, precision, report_step)
    report = _report(plan, model, new, before, score("rewards after"), precision)

    def fill(folder: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_file(folder / REPORT_FILE, to_text(report))

    fill_folder(out / MODEL_FOLDER, fill, "Make room, and run the same command again: it goes on from the checkpoint")


def score_pairs(
    judge: RewardModel,
    pairs: Sequence[EncodedPair],
    batch_size: int,
    stage: str = "rewards",
    report_texts: ReportTexts | None = None,
) -> PairScores:
    """Return the rewards of the answers of pairs.

    Args:
        judge: gives them.
        pairs: in the tokens of its tokenizer.
        batch_size: texts that go through the model together.
        stage: what is scored, for the progress.
        report_texts: progress.
    """

    def report(done: int, total: int) -> None:
        if report_texts is not None:
            report_texts(stage, done, total)

    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    rewards = judge.rewards_of(texts, batch_size=batch_size, report=report)
    return PairScores(
        rewards[::2],
        rewards[1::2],
        [pair.chosen_length for pair in pairs],
        [pair.rejected_length for pair in pairs],
        [pair.prompt_key for pair in pairs],
    )


def _report(
    plan: RewardPlan,
    model: PreTrainedModel,
    new: tuple[str, ...],
    before: PairScores,
    after: PairScores,
    precision: Precision,
) -> RewardReport:
    data = plan.data
    found = pair_accuracy(after.credits, after.prompts)
    extremes = reward_range(after)
    notes: list[str] = []
    config: Any = model.config
    if isinstance(config, PlacedConfig) and config.stack_plan.final_norm is None:
        notes.append(
            f"placement {config.placement} has no final norm: rewards are unbounded, and grow with the residual "
            "stream. A policy that is trained on them may find answers far outside of the range above"
        )
    return RewardReport(
        accuracy=found.accuracy,
        interval=found.interval,
        pairs=found.pairs,
        prompts=found.prompts,
        holds_half=holds_half(found),
        verdict=verdict(after),
        ties=sum(credit == 0.5 for credit in after.credits),
        loss=after.loss,
        before=pair_accuracy(before.credits, before.prompts),
        loss_before=before.loss,
        length=length_bias(after),
        rewards=extremes,
        counts=data.counts,
        train_pairs=len(data.train),
        train_prompts=len({pair.prompt_key for pair in data.train}),
        steps=plan.config.steps(len(data.train)),
        form=TextForm.of(data.form),
        sequence_length=plan.sequence_length,
        pad_token=str(plan.tokenizer.pad_token),
        new_parameters=new,
        base=plan.source,
        sources=plan.sources,
        seed=plan.config.seed,
        notes=tuple(notes),
        precision=str(precision),
    )


def _tokens(data: PreferenceData) -> set[int]:
    return {
        token
        for pair in (*data.train, *data.held_out)
        for text in (pair.chosen, pair.rejected)
        for token in text.tolist()
    }


def _share(share: float, interval: tuple[float, float]) -> str:
    return f"{share:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"


def _describe_length(length: LengthBias) -> Iterator[str]:
    words = [f"always the longer answer {_share(length.longer.accuracy, length.longer.interval)}"]
    if length.shorter_chosen is not None:
        found = length.shorter_chosen
        words.append(
            f"accuracy where the shorter answer is preferred {_share(found.accuracy, found.interval)} ({found.pairs:,} "
            "pairs)"
        )
    if length.correlation is not None:
        words.append(f"correlation of reward with length {length.correlation:+.2f}")
    yield f"length: {'; '.join(words)}"
