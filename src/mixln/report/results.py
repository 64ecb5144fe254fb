"""What a comparison found, as plain data: no models, no tensors.

Everything here is written to `results.json` and read back without loss, so that tables, figures and pages can be drawn
again from the file alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from mixln.report.series import Estimate, FigureSpec, Interval, Series, is_below_frequencies
from mixln.report.step_results import StepResult


@dataclass(frozen=True)
class CurvePoint:
    """One point of a loss curve: mean loss in nats per predicted token after `step` steps and `tokens` tokens."""

    step: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Constants:
    """The losses that a language model must beat, on the same validation tokens, in nats per token
    (docs/concepts/uncertainty.md).

    Attributes:
        token_frequencies: of a model that knows how frequent each token is in the training tokens, and nothing else.
        token_pairs: of one that knows which token followed which, and nothing else (bigrams).
        counted_tokens: training tokens that both were counted on.
        train_tokens: training tokens that there are.
        validation_tokens: predicted tokens that the losses are means over.
    """

    token_frequencies: float
    token_pairs: float
    counted_tokens: int
    train_tokens: int
    validation_tokens: int

    @property
    def losses(self) -> dict[str, float]:
        """Both losses by what they are called in tables and figures."""
        return {"token frequencies": self.token_frequencies, "token pairs": self.token_pairs}


@dataclass(frozen=True)
class RunResult:
    """One training run and what was measured on it.

    `validation_loss` is total loss / total predicted tokens (nats); `perplexity` its exponential. `diverged` says that
    the loss stopped being a finite number; the loss is then None, and so is what was to be measured after training.
    `learning_rate` is the peak. `depth` is what each layer does, by the names of series, as in a diagnosis
    (docs/reference/measures.md): of the trained model, and `gradient_norm_at_init` of the model that training began
    with. `config` is the whole resolved configuration; `notes` say what could not be measured, and why.
    `over_token_frequencies` is the validation loss minus that of token frequencies, with its 95 % interval over
    validation documents; None: the run diverged, or an older version made the result. `folder` is the run's own,
    relative to that of the comparison; None: it is not known.
    """

    SCHEMA_VERSION: ClassVar[int] = 3
    OLDEST_VERSION: ClassVar[int] = 2

    placement: str
    seed: int
    learning_rate: float
    embedding_std: float
    num_hidden_layers: int
    num_parameters: int
    train_tokens: int
    train_curve: list[CurvePoint]
    validation_curve: list[CurvePoint]
    validation_loss: float | None
    perplexity: float | None
    diverged: bool
    seconds: float
    tokens_per_second: float
    depth: dict[str, Series] | None
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    over_token_frequencies: Estimate | None = None
    folder: str | None = None

    @property
    def has_learned_order(self) -> bool:
        """False: the loss is not clearly below that of token frequencies, so the model has not learned word order.

        The rule is that of `mixln.report.series.is_below_frequencies`. A run that diverged, or whose difference is not
        known, is not said to be so.
        """
        return is_below_frequencies(self.over_token_frequencies)


@dataclass(frozen=True)
class Difference:
    """Validation loss of a scheme minus that of the baseline on the same seeds; negative: the scheme is better.

    `interval` is the 95 % confidence interval of the mean (Student's t over paired seeds); None under 3 seeds.
    """

    mean: float
    interval: Interval | None
    seeds: int

    @property
    def estimate(self) -> Estimate:
        """The mean with its interval."""
        return Estimate(self.mean, self.interval)


@dataclass(frozen=True)
class SchemeSummary:
    """One row of the table: a scheme at its own best learning rate, over seeds.

    `loss_spread` is the sample standard deviation over seeds, None with one seed. Means are over the runs that did
    not diverge, and None if all did. `without_order` counts the runs that have not learned word order: a scheme with
    one is not ranked, and has no difference.
    """

    placement: str
    learning_rate: float
    seeds: int
    diverged: int
    loss_mean: float | None
    loss_spread: float | None
    perplexity_mean: float | None
    difference: Difference | None
    without_order: int = 0


@dataclass(frozen=True)
class GridPoint:
    """Mean validation loss of one scheme at one learning rate; None if every seed diverged."""

    placement: str
    learning_rate: float
    loss_mean: float | None
    seeds: int


@dataclass(frozen=True)
class ComparisonResult:
    """A whole comparison.

    `baseline` is the placement that differences are taken to. `runs` holds every run, `summaries` one row per scheme
    in the order asked for, `grid` every (scheme, learning rate). `facts` are label-value pairs about what all runs
    share (corpus, model size, tokens, schedule), in the order to print them; `machine` describes where it ran, and
    `command` the command line that made it. `depth_figures` are drawn of the runs' depth measures; `notes` are
    those of the runs. `constants` are the losses that a run must beat; None in results of older versions. `then` is
    what was done with the trained models after that, step by step. `names` are the names that schemes are shown by, by
    their text forms; a scheme without one is shown by its text form.
    """

    SCHEMA_VERSION: ClassVar[int] = 4
    OLDEST_VERSION: ClassVar[int] = 2

    baseline: str | None
    runs: list[RunResult]
    summaries: list[SchemeSummary]
    grid: list[GridPoint]
    facts: dict[str, str]
    machine: str
    command: str
    version: str
    depth_figures: list[FigureSpec] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    constants: Constants | None = None
    then: list[StepResult] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
