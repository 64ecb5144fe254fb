"""Policies trained against a reward, side by side under one judge (the form of Mix-LN, table 5): plain data, tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mixln.report import cells
from mixln.report.serialize import to_json
from mixln.report.series import Estimate, interval_columns
from mixln.report.tables import plain_table
from mixln.result import Sentence

POLICIES_FILE = "rlhf.json"


@dataclass(frozen=True)
class RewardFacts:
    """A reward, and how far it can be believed.

    Attributes:
        name: as the user has written it.
        accuracy: share of held-out pairs in which it prefers what was preferred; None: not known.
        pairs: how many they are.
        is_model: whether it is a trained one, which has faults that can be learned.
        cut: texts that have lost their beginning, since they are longer than its context.
    """

    name: str
    accuracy: Estimate | None = None
    pairs: int = 0
    is_model: bool = False
    cut: int = 0

    def __str__(self) -> str:
        if self.accuracy is None:
            return self.name
        return f"{self.name}, which is right in {_percent(self.accuracy)} of {self.pairs:,} held-out pairs"


@dataclass(frozen=True)
class PolicyScore:
    """One policy and its start on the same held-out prompts. Rewards are the judge's; intervals are over prompts.

    Attributes:
        policy: its name in the report.
        folder: of the trained model.
        start: folder or name of the model that it was before.
        reward: that it was trained against.
        steps: updates that it had.
        before: mean reward of the start.
        after: mean reward of the policy.
        rise: after - before, paired by prompt.
        deviation: standard deviation of the start's rewards, over completions.
        gain: rise / deviation; None: the start's rewards are all equal. The interval takes the deviation as given.
        win_rate: share of pairs of completions of one prompt in which the policy's has the higher reward; ties count
            half. The interval is Wilson's for a share of so many prompts.
        kl_per_token: nats, mean over tokens of the policy's completions.
        kl_per_sequence: nats, mean over completions.
        length_before: mean tokens of a completion of the start.
        length_after: the same of the policy.
        unfinished_before: share of the start's completions that did not end within the tokens that they had.
        unfinished_after: the same of the policy.
        verdict: what came of it, in words.
    """

    policy: str
    folder: str
    start: str
    reward: RewardFacts
    steps: int
    before: Estimate
    after: Estimate
    rise: Estimate
    deviation: float
    gain: Estimate | None
    win_rate: Estimate
    kl_per_token: Estimate
    kl_per_sequence: Estimate
    length_before: float
    length_after: float
    unfinished_before: float
    unfinished_after: float
    verdict: str = ""


@dataclass(frozen=True)
class PolicyTest:
    """Two policies on the same held-out prompts, under the same judge.

    Attributes:
        policy: the one.
        baseline: the other.
        reward: mean reward of the policy less that of the baseline, paired by prompt.
        rise: how much more the policy's reward has risen, paired by prompt.
        verdict: in words.
    """

    policy: str
    baseline: str
    reward: Estimate
    rise: Estimate
    verdict: str


@dataclass(frozen=True)
class PolicyReport:
    """Policies under one judge.

    Attributes:
        policies: in their order.
        tests: of each against the first.
        judge: the reward that all numbers are of, the same for all policies.
        held_out: prompts that were completed; none of them was trained on.
        trained_on: prompts that were trained on.
        repeated: rows of prompts that were left out, since their prompt occurs before.
        dropped: prompts that were left out, since they leave no room for a completion.
        sampling: how held-out prompts were completed, in words.
        divergence: how the KL divergence was estimated, in words.
        settings: of the training.
        machine: that it was measured on.
        command: the command line; empty from Python.
        version: of mixln.
        notes: what a reader must know.
    """

    SCHEMA_VERSION: ClassVar[int] = 1
    OLDEST_VERSION: ClassVar[int] = 1

    policies: list[PolicyScore]
    tests: list[PolicyTest]
    judge: RewardFacts
    held_out: int
    trained_on: int
    repeated: int
    dropped: int
    sampling: str
    divergence: str
    settings: dict[str, Any]
    machine: str
    command: str
    version: str
    notes: list[str] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """What came of the first policy, or how many rose."""
        if len(self.policies) == 1:
            return f"{self.policies[0].policy}: {self.policies[0].verdict}."
        risen = sum(not one.rise.holds_zero and one.rise.value > 0 for one in self.policies)
        return f"{risen} of {len(self.policies)} policies have a reward that rose and can be told from their start."

    def parts(self) -> Iterator[RenderableType]:
        """The headline, the table, a verdict for each policy and pair, then how it was measured."""
        yield Sentence(self.headline)
        yield self._table()
        if len(self.policies) > 1:
            yield from (Sentence(f"- {one.policy}: {one.verdict}") for one in self.policies)
        yield from (Sentence(f"- {test.verdict}") for test in self.tests)
        yield Sentence(f"- judge: {self.judge}")
        for one in self.policies:
            yield Sentence(f"- {one.policy}: {one.steps:,} steps against {one.reward}")
        left = [f"{self.repeated:,} rows repeat a prompt"] if self.repeated else []
        left += [f"{self.dropped:,} prompts are too long and left out"] if self.dropped else []
        counts = [f"{self.trained_on:,} prompts to train on", f"{self.held_out:,} held out", *left]
        yield Sentence(f"- {', '.join(counts)}; completions: {self.sampling}")
        yield Sentence(f"- KL: {self.divergence}")
        yield from (Sentence(f"- {note}") for note in self.notes)

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """A row for each policy."""
        return [
            {
                "policy": one.policy,
                "start": one.start,
                "reward": one.reward.name,
                "judge": self.judge.name,
                **interval_columns("reward_before", one.before),
                **interval_columns("reward_after", one.after),
                **interval_columns("gain", one.gain),
                **interval_columns("win_rate", one.win_rate),
                **interval_columns("kl_per_token", one.kl_per_token),
                **interval_columns("kl_per_sequence", one.kl_per_sequence),
                "length_before": one.length_before,
                "length_after": one.length_after,
                "unfinished_before": one.unfinished_before,
                "unfinished_after": one.unfinished_after,
                "steps": one.steps,
                "verdict": one.verdict,
            }
            for one in self.policies
        ]

    def to_json(self) -> str:
        """Strict JSON, with the version of its form."""
        return to_json(self)

    def _table(self) -> Table:
        table = plain_table(
            "Reward under the judge on held-out prompts, with 95 % intervals over prompts",
            "gain: rise in standard deviations of the start's rewards; KL in nats, to the start",
        )
        table.add_column("")
        for one in self.policies:
            table.add_column(Text(one.policy), justify="right", overflow="fold")
        for name, cell in _ROWS.items():
            table.add_row(name, *(Text(cell(one)) for one in self.policies))
        return table


def _percent(estimate: Estimate) -> str:
    low, high = estimate.interval or (estimate.value, estimate.value)
    return f"{estimate.value:.1%} [{low:.1%}, {high:.1%}]"


_ROWS = {
    "reward before": lambda one: one.before.format(".3f"),
    "reward after": lambda one: one.after.format(".3f"),
    "gain": lambda one: cells.MISSING if one.gain is None else one.gain.format("+.2f"),
    "win rate against the start": lambda one: _percent(one.win_rate),
    "KL per token": lambda one: one.kl_per_token.format(".4f"),
    "KL per completion": lambda one: one.kl_per_sequence.format(".3f"),
    "tokens before, after": lambda one: f"{one.length_before:.1f}, {one.length_after:.1f}",
    "not ended before, after": lambda one: f"{one.unfinished_before:.1%}, {one.unfinished_after:.1%}",
}
