"""Policies trained against rewards, and what one judge gives to their completions of held-out prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from rich.console import RenderableType
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixln.announce import announce
from mixln.data.prompt_rows import (
    Prompt,
    PromptData,
    PromptRequest,
    fitting_prompts,
    prompt_tokens,
    read_prompts,
)
from mixln.device import default_device
from mixln.errors import InputError
from mixln.evaluation.policies import (
    Completions,
    MeanEstimate,
    describe_difference,
    describe_rise,
    deviation_of,
    mean_over_prompts,
    paired_rise,
    win_rate,
)
from mixln.evaluation.rewards import ModelReward, Reward, open_reward
from mixln.measure.texts import longest_window
from mixln.models.companions import model_folder
from mixln.models.finite import require_finite_parameters
from mixln.models.load import load_causal_lm, load_plausible_config, load_tokenizer
from mixln.models.sampling import Completion, Sampling, complete, divergences
from mixln.progress import ReportStage
from mixln.report.policies import POLICIES_FILE, PolicyReport, PolicyScore, PolicyTest, RewardFacts
from mixln.report.series import Estimate
from mixln.result import Result, copy_folder
from mixln.storage import claim_folder, held_lock, write_file
from mixln.studies.kept_measures import MEASURED_FOLDER
from mixln.studies.kept_parts import KeptParts
from mixln.studies.machine import describe_machine
from mixln.studies.measured_models import display_names
from mixln.tasks.fine_tuning import model_fingerprint
from mixln.tasks.policy import describe_kept_policy, require_policy_training, train_policy
from mixln.tasks.policy_config import RLHFConfig
from mixln.tasks.trl_runs import claim_run
from mixln.training import MODEL_FOLDER
from mixln.version import __version__

REQUEST_FILE = "policy.json"
"""In the folder of a policy: all that its weights depend on."""

COMPLETIONS_FILE = "completions.jsonl"
"""In the folder of a policy: what was written to held-out prompts before and after, with the judge's rewards."""

_WITHOUT_LIMIT = 10**9
_OF_EVALUATION = ("validation_fraction", "max_validation_prompts", "samples", "greedy", "evaluation_batch_size")
_MAY_CHANGE = (*_OF_EVALUATION, "checkpoint_every")
"""Fields of the configuration that the weights of a policy do not depend on."""

ESTIMATOR = (
    "exact between the next-token distributions at every place of the policy's own completions, summed over a "
    "completion (Rao-Blackwellised)"
)


@dataclass(frozen=True)
class Scores:
    """The judge's rewards of completions: of each prompt, a number for each."""

    rewards: list[list[float]]


@dataclass(frozen=True)
class Contestant:
    """A model that becomes a policy.

    Attributes:
        name: in the report.
        source: folder or name on the hub, as the user has written it.
        start: folder of the model.
        reward: that it is trained against.
        out: folder of its run.
    """

    name: str
    source: str
    start: Path
    reward: Reward
    out: Path


@dataclass(frozen=True, repr=False)
class TrainedPolicies(Result):
    """Policies and what became of their rewards; the table has a row for each.

    Attributes:
        report: under the judge (`rlhf.json`).
        folders: of the trained models, by the names of the policies.
    """

    report: PolicyReport
    folders: dict[str, Path]

    def parts(self) -> Iterator[RenderableType]:
        """The report, and where the models are."""
        yield from self.report.parts()
        for name, folder in self.folders.items():
            yield f"{name}: {folder}"

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """A row for each policy."""
        return self.report.rows()

    def _write(self, folder: Path) -> Path:
        for name, source in self.folders.items():
            copy_folder(source, _own_folder(folder, name, len(self.folders)) / MODEL_FOLDER)
        write_file(folder / POLICIES_FILE, self.report.to_json())
        return folder


@dataclass(frozen=True)
class PolicyPlan:
    """All that policies are made of and judged by.

    Attributes:
        contestants: in their order.
        data: prompts that are trained on and held out, the same for all.
        judge: of all numbers.
        config: how.
        out: folder of the report.
        notes: what a reader must know.
    """

    contestants: list[Contestant]
    data: PromptData
    judge: Reward
    config: RLHFConfig
    out: Path
    notes: list[str]


def plan_policies(
    models: Sequence[str],
    request: PromptRequest,
    rewards: Sequence[str],
    judge: str | None,
    config: RLHFConfig,
    out: str | Path,
    *,
    names: Sequence[str] | None = None,
    force: bool = False,
) -> PolicyPlan:
    """Read prompts, open rewards, and make sure that all can be done, before anything is trained.

    Args:
        models: folders or names on the hub.
        request: which prompts.
        rewards: one for all models, or one for each.
        judge: a reward; None: the one that all are trained against.
        config: how.
        out: folder of the report; one model has its run there, several have theirs in folders of their names.
        names: of the models; None: by what tells them apart.
        force: take rewards that cannot be told from chance.

    Raises:
        InputError: something is not there or does not fit, or a reward cannot be told from chance.
    """
    require_policy_training(config)
    out = Path(out)
    if not models or not rewards:
        raise InputError(f"`{'reward' if models else 'models'}` is empty: give at least one")
    if len(set(models)) < len(models):
        raise InputError("a model is named twice: name each once")
    names = display_names(models) if names is None else names
    if len(names) != len(models) or len({_file_name(name) for name in names}) < len(names):
        raise InputError(f"`names` must have a different name for each of the {len(models)} models")
    for name in names:
        if not name.strip() or (len(models) > 1 and (name.startswith(".") or name == POLICIES_FILE)):
            raise InputError(f"{name!r} in `names` cannot be the name of a policy's folder. Choose another name")
    for what, given in (("reward", rewards), ("judge", [judge])):
        if "" in given:
            raise InputError(f"`{what}` is empty: give a folder, or python:FILE:FUNCTION")
    if len(rewards) not in (1, len(models)):
        raise InputError(
            f"give one reward for all models, or one for each: there are {len(rewards)} rewards, and the number of "
            f"models is {len(models)}"
        )
    if judge is None and len(set(rewards)) > 1:
        raise InputError(
            "rewards that were trained apart share no scale, so their numbers cannot be compared: give one `judge` for "
            "all policies"
        )
    opened: dict[str, Reward] = {}
    for source in dict.fromkeys([*rewards, *filter(None, [judge])]):
        opened[source] = open_reward(source, batch_size=config.evaluation_batch_size)
    for source in dict.fromkeys(rewards):
        opened[source].require_above_chance(force=force)
    one_judge = opened[rewards[0] if judge is None else judge]
    one_judge.require_above_chance(force=force, what="judge")
    starts = [model_folder(model) for model in models]
    fits = [(load_tokenizer(str(start)), _room(start, config)) for start in starts]
    read = read_prompts(request)
    if any(prompt.is_rendered for prompt in (*read.train, *read.held_out)):
        for (tokenizer, _), start in zip(fits, starts, strict=True):
            if not tokenizer.chat_template:
                announce(("template", f"{start} has no chat template: it gets 'User: ...', 'Assistant: ...'"))
    data = fitting_prompts(read, fits, drop=config.too_long == "drop")
    own = rewards if len(rewards) > 1 else [*rewards] * len(models)
    contestants = [
        Contestant(name, model, start, opened[reward], _own_folder(out, name, len(models)))
        for name, model, start, reward in zip(names, models, starts, own, strict=True)
    ]
    used = list(dict.fromkeys([*(one.reward.name for one in contestants), one_judge.name]))
    notes = list(_notes([opened[name] for name in used], one_judge, contestants))
    return PolicyPlan(contestants, data, one_judge, config, out, notes)


def run_policies(plan: PolicyPlan, *, command: str = "", report: ReportStage | None = None) -> TrainedPolicies:
    """Train the policies and judge them. What an earlier call has finished is not done again.

    Args:
        plan: what `plan_policies` gave.
        command: the command line.
        report: progress.

    Raises:
        InputError: a folder holds another run, a reward is no number, or a model cannot be trained.
        TrainingInterrupted, TrainingDivergedError: as `mixln.tasks.policy.train_policy`.
    """
    claim_folder(plan.out)
    for one in plan.contestants:
        claim_folder(one.out)
    busy = f"another process works in {plan.out}. Wait for it, or choose another folder"
    with ExitStack() as stack:
        stack.enter_context(held_lock(plan.out / ".work.lock", busy))
        for one in plan.contestants:
            claim_run(one.out, REQUEST_FILE, _identity(one, plan))
        # the starts first: what is wrong with rewards and prompts shows before anything is trained
        before = [_judged_start(one, plan, report) for one in plan.contestants]
        for one in plan.contestants:
            _train(one, plan, report)
        after = [_judged_policy(one, plan, report) for one in plan.contestants]
        made = _report(plan, before, after, command)
        write_file(plan.out / POLICIES_FILE, made.to_json())
    return TrainedPolicies(made, {one.name: one.out / MODEL_FOLDER for one in plan.contestants})


def describe_kept_policies(out: Path, names: Sequence[str]) -> str:
    """Return in words what is kept of policies that are not finished."""
    kept = [(name, describe_kept_policy(_own_folder(out, name, len(names)))) for name in names]
    return kept[0][1] if len(kept) == 1 else "; ".join(f"{name}: {words}" for name, words in kept)


def _own_folder(out: Path, name: str, count: int) -> Path:
    return out if count == 1 else out / _file_name(name)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_.=()," else "_" for letter in name)


def _room(start: Path, config: RLHFConfig) -> int:
    """How many tokens a prompt may have, so that a whole completion fits behind it."""
    model_config = load_plausible_config(str(start)).get_text_config()
    longest = longest_window(load_tokenizer(str(start)), model_config, _WITHOUT_LIMIT)
    if longest <= config.max_new_tokens:
        raise InputError(
            f"{start} takes {longest} tokens, and a completion may have {config.max_new_tokens}: lower `max_new_tokens`"
        )
    return longest - config.max_new_tokens


def _notes(rewards: Sequence[Reward], judge: Reward, contestants: Sequence[Contestant]) -> Iterator[str]:
    for reward in rewards:
        if not isinstance(reward, ModelReward):
            continue
        if reward.accuracy is None:
            yield f"How often {reward.name} is right is not known: there is no reward.json beside its model."
        elif not reward.accuracy.is_above_chance:
            yield f"{reward.name} cannot be told from a coin ({reward.accuracy}) and was used by force."
    if isinstance(judge, ModelReward) and any(one.reward is judge for one in contestants):
        yield (
            "The judge is the reward that was trained against: a gain can be its faults, learned. A judge of its own "
            "tells them apart."
        )
    if len(contestants) > 1:
        yield (
            "Intervals are over prompts. Each policy was trained with one seed, and another seed can differ by more: "
            "train with several before one is called better."
        )
    if len({one.reward.name for one in contestants}) > 1:
        yield "The policies were trained against rewards of their own; all numbers are of the one judge."


# training


def _identity(one: Contestant, plan: PolicyPlan) -> dict[str, Any]:
    config = {name: value for name, value in asdict(plan.config).items() if name not in _MAY_CHANGE}
    return {
        "start": model_fingerprint(one.start),
        "reward": one.reward.identity(),
        "prompts": PromptData(plan.data.train, [], plan.data.counts).fingerprint(),
        "config": config,
    }


def _train(one: Contestant, plan: PolicyPlan, report: ReportStage | None) -> None:
    if (one.out / MODEL_FOLDER).exists():
        announce(("finished", f"already: {one.out / MODEL_FOLDER}"))
        return
    prompts = plan.data.train
    steps = plan.config.num_steps(len(prompts))

    def score(numbers: Sequence[int], texts: Sequence[str]) -> list[float]:
        return one.reward.score([prompts[number] for number in numbers], texts)

    def report_step(step: int, reward: float) -> None:
        del reward
        if report is not None:
            report(f"{one.name}, training", step, steps)

    tokens = prompt_tokens(prompts, load_tokenizer(str(one.start)))
    train_policy(one.start, tokens, score, plan.config, one.out, report_step)


# judging


def _sampling(config: RLHFConfig) -> Sampling:
    return Sampling(
        config.max_new_tokens,
        config.temperature,
        config.top_p,
        config.greedy,
        config.samples_per_prompt,
        config.seed,
        config.evaluation_batch_size,
    )


def _kept_completions(one: Contestant, plan: PolicyPlan, policy: Path | None) -> KeptParts[Completions]:
    def identify() -> dict[str, Any]:
        return {
            "start": model_fingerprint(one.start),
            "policy": None if policy is None else model_fingerprint(policy),
            "prompts": PromptData([], plan.data.held_out, plan.data.counts).fingerprint(),
            "sampling": asdict(_sampling(plan.config)),
            "machine": describe_machine(),
            "versions": [__version__, transformers.__version__],
        }

    return KeptParts(Completions, one.out / MEASURED_FOLDER, identify, "completions")


def _judged_start(one: Contestant, plan: PolicyPlan, report: ReportStage | None) -> tuple[Completions, Scores]:
    def write() -> Completions:
        model, tokenizer = _open(one.start)
        return _written(_completed(model, tokenizer, plan, _stage(report, f"{one.name}, start")))

    found = _kept_completions(one, plan, None).take("start", write)
    if one.reward is not plan.judge:  # that it can score is known before training begins
        one.reward.score(plan.data.held_out[:1], found.texts[0][:1])
    return found, _judge(one, plan, found, "start")


def _judged_policy(one: Contestant, plan: PolicyPlan, report: ReportStage | None) -> tuple[Completions, Scores]:
    def write() -> Completions:
        policy, tokenizer = _open(one.out / MODEL_FOLDER)
        several = _completed(policy, tokenizer, plan, _stage(report, f"{one.name}, policy"))
        start, _ = _open(one.start)
        rows = prompt_tokens(plan.data.held_out, tokenizer)
        pairs = [(row, one.ids) for row, written in zip(rows, several, strict=True) for one in written]
        found = divergences(
            policy,
            start,
            [row for row, _ in pairs],
            [ids for _, ids in pairs],
            temperature=1.0 if plan.config.greedy else plan.config.temperature,
            batch_size=plan.config.evaluation_batch_size,
            report=_stage(report, f"{one.name}, KL"),
        )
        count = plan.config.samples_per_prompt
        return _written(several, [found[at : at + count] for at in range(0, len(found), count)])

    found = _kept_completions(one, plan, one.out / MODEL_FOLDER).take("policy", write)
    return found, _judge(one, plan, found, "policy")


def _open(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load_causal_lm(str(folder))
    require_finite_parameters(model)
    nn.Module.to(model, default_device())
    nn.Module.float(model)
    return model, tokenizer


def _completed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: PolicyPlan,
    report: Callable[[int, int], None] | None,
) -> list[list[Completion]]:
    rows = prompt_tokens(plan.data.held_out, tokenizer)
    return complete(model, tokenizer, rows, _sampling(plan.config), report)


def _written(several: list[list[Completion]], found: list[list[float]] | None = None) -> Completions:
    return Completions(
        [[one.text for one in written] for written in several],
        [[len(one.ids) for one in written] for written in several],
        [[one.ended for one in written] for written in several],
        found or [],
    )


def _judge(one: Contestant, plan: PolicyPlan, found: Completions, name: str) -> Scores:
    def identify() -> dict[str, Any]:
        return {
            "judge": plan.judge.identity(),
            "prompts": PromptData([], plan.data.held_out, plan.data.counts).fingerprint(),
            "texts": found.texts,
            "machine": describe_machine(),
            "versions": [__version__, transformers.__version__],
        }

    def score() -> Scores:
        prompts: list[Prompt] = [
            prompt for prompt, texts in zip(plan.data.held_out, found.texts, strict=True) for _ in texts
        ]
        flat = plan.judge.score(prompts, [text for texts in found.texts for text in texts])
        count = plan.config.samples_per_prompt
        return Scores([flat[at : at + count] for at in range(0, len(flat), count)])

    return KeptParts(Scores, one.out / MEASURED_FOLDER, identify, "rewards").take(name, score)


def _stage(report: ReportStage | None, name: str) -> Callable[[int, int], None] | None:
    return None if report is None else lambda done, total: report(name, done, total)


# the report


def _report(
    plan: PolicyPlan,
    before: Sequence[tuple[Completions, Scores]],
    after: Sequence[tuple[Completions, Scores]],
    command: str,
) -> PolicyReport:
    scores = [_score(one, plan, was, now) for one, was, now in zip(plan.contestants, before, after, strict=True)]
    tests = [
        _test(plan, number, [one.rewards for _, one in before], [one.rewards for _, one in after])
        for number in range(1, len(scores))
    ]
    notes = [*plan.notes]
    for one, (found, _) in zip(plan.contestants, after, strict=True):
        if found.unfinished > 0.5:
            notes.append(
                f"{found.unfinished:.0%} of the completions of {one.name} do not end within "
                f"{plan.config.max_new_tokens} tokens: they are judged as they are cut."
            )
    for reward in {id(one): one for one in (*(c.reward for c in plan.contestants), plan.judge)}.values():
        if isinstance(reward, ModelReward) and reward.cut:
            notes.append(
                f"{reward.cut:,} texts were longer than the context of {reward.name} and lost their beginning."
            )
    divergence = ESTIMATOR
    if plan.config.greedy:
        divergence += "; along greedy completions, so it is no divergence of the distributions over completions"
    return PolicyReport(
        scores,
        tests,
        _facts(plan.judge),
        len(plan.data.held_out),
        len(plan.data.train),
        plan.data.counts.repeated,
        plan.data.counts.dropped,
        plan.config.describe_sampling(),
        divergence,
        {**asdict(plan.config), "learning_rate": plan.config.peak_learning_rate, "trl": version("trl")},
        describe_machine(),
        command,
        __version__,
        notes,
    )


def _score(
    one: Contestant, plan: PolicyPlan, was: tuple[Completions, Scores], now: tuple[Completions, Scores]
) -> PolicyScore:
    (before, rewards_before), (after, rewards_after) = was, now
    _write_completions(one, plan, was, now)
    deviation = deviation_of(rewards_before.rewards)
    rise = paired_rise(rewards_after.rewards, rewards_before.rewards)
    return PolicyScore(
        policy=one.name,
        folder=str(one.out / MODEL_FOLDER),
        start=one.source,
        reward=_facts(one.reward),
        steps=plan.config.num_steps(len(plan.data.train)),
        before=_estimate(mean_over_prompts(rewards_before.rewards)),
        after=_estimate(mean_over_prompts(rewards_after.rewards)),
        rise=_estimate(rise),
        deviation=deviation,
        gain=_estimate(rise.divided(deviation)) if deviation else None,
        win_rate=_estimate(win_rate(rewards_after.rewards, rewards_before.rewards)),
        kl_per_token=_estimate(mean_over_prompts(after.divergences, after.lengths)),
        kl_per_sequence=_estimate(mean_over_prompts(after.divergences)),
        length_before=before.mean_length,
        length_after=after.mean_length,
        unfinished_before=before.unfinished,
        unfinished_after=after.unfinished,
        verdict=describe_rise(rise, deviation),
    )


def _test(
    plan: PolicyPlan, number: int, before: Sequence[list[list[float]]], after: Sequence[list[list[float]]]
) -> PolicyTest:
    one, first = plan.contestants[number], plan.contestants[0]
    reward = paired_rise(after[number], after[0])
    own, base = (
        [sum(now) / len(now) - sum(was) / len(was) for now, was in zip(after[at], before[at], strict=True)]
        for at in (number, 0)
    )
    rise = mean_over_prompts([[ours - theirs] for ours, theirs in zip(own, base, strict=True)])
    words = describe_difference(one.name, first.name, reward, rise)
    return PolicyTest(one.name, first.name, _estimate(reward), _estimate(rise), words)


def _write_completions(
    one: Contestant, plan: PolicyPlan, was: tuple[Completions, Scores], now: tuple[Completions, Scores]
) -> None:
    lines = [
        json.dumps(
            {
                "prompt": prompt.text or prompt.messages,
                "before": was[0].texts[number],
                "after": now[0].texts[number],
                "reward_before": was[1].rewards[number],
                "reward_after": now[1].rewards[number],
            },
            ensure_ascii=False,
        )
        for number, prompt in enumerate(plan.data.held_out)
    ]
    write_file(one.out / COMPLETIONS_FILE, "\n".join(lines) + "\n")


def _facts(reward: Reward) -> RewardFacts:
    accuracy = reward.accuracy
    return RewardFacts(
        reward.name,
        None if accuracy is None else Estimate(accuracy.share, accuracy.interval),
        0 if accuracy is None else accuracy.pairs,
        isinstance(reward, ModelReward),
        reward.cut if isinstance(reward, ModelReward) else 0,
    )


def _estimate(found: MeanEstimate) -> Estimate:
    return Estimate(found.value, found.interval)
