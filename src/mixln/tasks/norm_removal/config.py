"""The settings of a norm removal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from mixln.checked import Checked, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range
from mixln.errors import InputError
from mixln.tasks.healing_config import FurtherTrainingConfig
from mixln.tasks.norm_removal.schedule import PUBLISHED, RemovalSchedule, derived_schedule
from mixln.tasks.recipe import TextTrainingConfig
from mixln.training.config import FaultConfig, OptimizerConfig

REPORT_FILE = "norm_removal.json"
"""In the folder of a model without norms."""

DERIVED = "derived"
_STEPS = 300
_LEARNING_RATE = 3e-4
_WEIGHT_DECAY = 0.01

SpikeAction = Literal["wait", "roll_back", "stop"]


@dataclass(frozen=True)
class SpikePolicy(Checked):
    """What to do when a removal makes the training loss spike. It may change when an interrupted run is taken up.

    Attributes:
        action: wait: remove nothing more until the spike is over; roll_back: go back to before the removal, and remove
            from there on at half the pace; stop: end the run.
        threshold: a spike is a loss that many nats above the median of the steps before the last removal, or one that
            is not finite.
        window: so many steps.
        max_roll_backs: stop after so many.
    """

    checked_path: ClassVar[str] = "spike_"

    action: SpikeAction = "wait"
    threshold: PositiveFloat = 0.5
    window: PositiveInt = 20
    max_roll_backs: PositiveInt = 5


@dataclass(frozen=True)
class NormRemovalConfig(FurtherTrainingConfig):
    """How norms are removed: AdamW, weight decay 0.01, clipping at 1, and a cosine to 0.

    Attributes:
        schedule: When each norm is removed: gpt2-small, gpt2-medium, gpt2-large or gpt2-xl, as published, or derived. A
            derived schedule is that of GPT-2 small, stretched to the number of layers so that the removals take about
            60 % of the steps.
        steps: Steps of training. Default: the schedule's, or 300.
        first_step: The step before which the first norm goes. Default: the schedule's.
        feed_forward_gap: Steps from the removal of one feed-forward norm to the next removal. Default: the schedule's.
        query_key_gap: The same for the attention norms as query and key see them. Default: the schedule's.
        value_gap: The same for the attention norms as value sees them. Default: the schedule's.
        final_gap: Steps from the final norm to the exception of the end-of-text token. Default: the schedule's.
        end_of_text_gap: Steps from that to the exception of the first position. Default: the schedule's.
        first_layer: The layer to begin with, counted from 1. Those before it come after the final norm. Default: the
            first.
        learning_rate: The peak of the learning rate. Default: the schedule's, or 3e-4.
        warmup_steps: Steps before the peak. Default: the schedule's, or 10 % of the steps.
        auxiliary_weight: The weight of the loss that keeps the standard deviation before the final norm equal over
            tokens.
        on_spike: What to do when a removal makes the loss spike: wait until it is over, roll_back to before the removal
            and go on at half the pace, or stop.
        spike_threshold: A spike is a training loss that many nats above the median before the last removal.
        text_field: The field or column of the text that holds a document.
        evaluate_every: Steps between validations. Default: 20 times a run, or less often if more tokens would be
            validated than trained on.
    """

    schedule: str = DERIVED
    steps: PositiveInt | None = None
    first_step: Annotated[int, Range(low=2)] | None = None
    feed_forward_gap: PositiveInt | None = None
    query_key_gap: PositiveInt | None = None
    value_gap: PositiveInt | None = None
    final_gap: PositiveInt | None = None
    end_of_text_gap: PositiveInt | None = None
    first_layer: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    warmup_steps: NonNegativeInt | None = None
    auxiliary_weight: NonNegativeFloat = 0.0
    on_spike: SpikeAction = "wait"
    spike_threshold: PositiveFloat = 0.5
    text_field: str = "text"
    evaluate_every: PositiveInt | None = None

    @property
    def spike_policy(self) -> SpikePolicy:
        """What to do about spikes."""
        return SpikePolicy(self.on_spike, self.spike_threshold)

    @property
    def num_steps(self) -> int:
        """Steps of training, the default resolved."""
        if self.steps is not None:
            return self.steps
        return PUBLISHED[self.schedule].steps if self.schedule in PUBLISHED else _STEPS

    def removal_schedule(self, num_layers: int) -> RemovalSchedule:
        """Return the schedule for a model with so many layers.

        Raises:
            InputError: there is no such schedule, it is another number of layers', or it is impossible.
        """
        if self.schedule == DERIVED:
            found = derived_schedule(num_layers, self.num_steps)
        elif self.schedule not in PUBLISHED:
            from mixln.placement.words import unknown

            raise InputError(f"`schedule`: {unknown('schedule', self.schedule, [*PUBLISHED, DERIVED])}")
        elif (published := PUBLISHED[self.schedule]).num_layers != num_layers:
            raise InputError(
                f"`schedule={self.schedule}` is for {published.num_layers} layers, and the model has {num_layers}: use "
                f"`schedule={DERIVED}`"
            )
        else:
            found = published.schedule
        given = {name: getattr(self, name) for name in vars(found)}
        found = replace(found, **{name: value for name, value in given.items() if value is not None})
        found.require_room(num_layers, self.num_steps)
        return found

    def recipe(self, corpus: str, tokenizer: str, longest: int) -> TextTrainingConfig:
        """Return the configuration of the run, and of its control.

        Args:
            corpus: to train on, as in `mixln train`.
            tokenizer: folder of the model's.
            longest: tokens of a row, where nothing else is said.
        """
        published, steps = PUBLISHED.get(self.schedule), self.num_steps
        length = self.sequence_length or longest
        rate, warmup, cosine_steps = self.learning_rate, self.warmup_steps, steps
        if published is not None:
            rate = published.learning_rate if rate is None else rate
            warmup = published.warmup_steps if warmup is None else warmup
            if published.cosine_steps > published.steps:  # some published runs end before their cosine does
                cosine_steps = max(steps, published.cosine_steps)
        optimizer = OptimizerConfig(
            name="adamw",
            learning_rate=_LEARNING_RATE if rate is None else rate,
            warmup_steps=warmup,
            final_learning_rate_fraction=0.0,
            weight_decay=_WEIGHT_DECAY,
        )
        step_tokens = self.batch_size * length
        return self._training(
            corpus,
            tokenizer,
            length,
            steps,
            schedule_steps=cosine_steps,
            text_field=self.text_field,
            optimizer=optimizer,
            evaluate_every=self.evaluate_every or max(1, steps // 20, self.max_validation_tokens // step_tokens),
            # a loss that is not finite is a spike; that of a run that waits is left out
            faults=FaultConfig(on_non_finite="skip" if self.on_spike == "wait" else "stop"),
        )
