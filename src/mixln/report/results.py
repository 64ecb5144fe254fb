"""What a comparison found, as plain data: no models, no tensors.

Everything here is written to `results.json` and read back without loss, so that tables, figures and pages can be drawn
again from the file alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from mixln.report.series import Estimate, FigureSpec, Interval, Series, is_better_than_constants
from mixln.report.step_results import Quantity, QuantitySummary, StepResult
from mixln.report.terms import Terms


@dataclass(frozen=True)
class CurvePoint:
    """One point of a loss curve: mean loss in nats per predicted token after `step` steps and `tokens` tokens.

    Of classifiers of images, the loss is per image, and `tokens` counts images.
    """

    step: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class ValuePoint:
    """One point of the curve of another quantity, after `step` steps and so many images."""

    step: int
    images: int
    value: float


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

    @property
    def values(self) -> dict[str, dict[str, float]]:
        """Other quantities of them, by the same names: there are none."""
        return {}

    @property
    def caption(self) -> str:
        """What they are, for a table."""
        return (
            f"token frequencies and pairs: the loss of knowing only these, counted on {self.counted_tokens:,} of "
            f"{self.train_tokens:,} training tokens"
        )

    @property
    def levels(self) -> str:
        """What their lines in a figure are."""
        return (
            "The level lines are two constants: the loss of token frequencies alone (upper) and of token pairs "
            "(lower). A run that ends at the upper line has not learned word order."
        )


@dataclass(frozen=True)
class ClassConstants:
    """What a classifier of images must beat, on the same validation images: constants that do not look at the image.

    Attributes:
        class_frequencies: the loss, in nats per image, of the frequencies of classes in the training images.
        most_frequent_class: the class that is the most frequent in the training images.
        accuracy: of always naming it.
        train_images: training images that there are.
        validation_images: images that loss and accuracy are means over.
    """

    class_frequencies: float
    most_frequent_class: str
    accuracy: float
    train_images: int
    validation_images: int

    @property
    def losses(self) -> dict[str, float]:
        """The loss by what it is called in tables and figures."""
        return {"class frequencies": self.class_frequencies}

    @property
    def values(self) -> dict[str, dict[str, float]]:
        """The accuracy, by the same name and that of the quantity."""
        return {"class frequencies": {"top1": self.accuracy}}

    @property
    def caption(self) -> str:
        """What it is, for a table."""
        return (
            f"class frequencies: knowing only how frequent each class is in the {self.train_images:,} training images, "
            f"and always naming {self.most_frequent_class}"
        )

    @property
    def levels(self) -> str:
        """What its line in a figure is."""
        return "The level line is what class frequencies alone have. A run that ends there has learned nothing."


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

    Of a classifier of images, losses are per image, tokens are images, and there is no perplexity. `values` are then
    `top1` and `top5`, shares of validation images with their 95 % intervals, and `value_curves` what they were during
    training. `over_class_frequencies` is the validation loss minus that of class frequencies, and
    `over_most_frequent_class` the accuracy minus that of the most frequent class, both paired by image.
    """

    SCHEMA_VERSION: ClassVar[int] = 4
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
    values: dict[str, Estimate] = field(default_factory=dict)
    value_curves: dict[str, list[ValuePoint]] = field(default_factory=dict)
    over_class_frequencies: Estimate | None = None
    over_most_frequent_class: Estimate | None = None

    @property
    def over_constant(self) -> Estimate | None:
        """The validation loss minus that of the constant that a run must beat; None: it is not known."""
        return self.over_class_frequencies if self.over_token_frequencies is None else self.over_token_frequencies

    @property
    def has_learned(self) -> bool:
        """False: the run is not clearly better than the constants: it has not learned word order, or to tell classes
        apart.

        The rule is that of `mixln.report.series.is_better_than_constants`. A run that diverged, or whose difference is
        not known, is not said to be so.
        """
        losses = [self.over_token_frequencies, self.over_class_frequencies]
        return is_better_than_constants(losses, self.over_most_frequent_class)


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
    not diverge, and None if all did. `without_order` counts the runs that are not clearly better than the constants
    (have not learned word order, or to tell classes apart): a scheme with one is not ranked, and has no difference.
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

    Of classifiers of images, `class_constants` take the place of `constants`. `quantities` are measured beside the loss
    (top-1 and top-5), and `values` are what they come to for each scheme. `terms` are the words of the report.
    """

    SCHEMA_VERSION: ClassVar[int] = 5
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
    class_constants: ClassConstants | None = None
    quantities: list[Quantity] = field(default_factory=list)
    values: list[QuantitySummary] = field(default_factory=list)
    terms: Terms = field(default_factory=Terms)

    @property
    def to_beat(self) -> Constants | ClassConstants | None:
        """What a run must beat; None in results of older versions."""
        return self.class_constants if self.constants is None else self.constants

    def value_of(self, placement: str, quantity: str) -> QuantitySummary | None:
        """What a quantity of a scheme comes to; None: it was not measured."""
        return next((one for one in self.values if (one.placement, one.quantity) == (placement, quantity)), None)
