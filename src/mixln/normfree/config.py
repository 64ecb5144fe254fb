"""The settings of a norm removal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mixln.errors import InputError
from mixln.normfree.removal import SpikePolicy
from mixln.normfree.schedule import PUBLISHED, RemovalSchedule, derived_schedule
from mixln.placement.registry import unknown
from mixln.posttraining.heal import fine_tuning_data
from mixln.training import ExecutionConfig, FaultConfig, OptimizerConfig, Recipe

DERIVED = "derived"
_STEPS = 300
_LEARNING_RATE = 3e-4
_WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class NormRemovalConfig:
    """How norms are removed: AdamW, weight decay 0.01, clipping at 1, and a cosine to 0.

    Attributes:
        schedule: gpt2-small, gpt2-medium, gpt2-large or gpt2-xl, as published; or derived, from the number of layers
            and of steps: that of GPT-2 small, stretched so that the removals take about 60 % of the steps.
        steps: of training; null: the schedule's, or 300.
        first_step: the step before which the first norm goes; null, as all gaps: the schedule's.
        feed_forward_gap: steps from the removal of one feed-forward norm to the next removal.
        query_key_gap: the same for the attention norms as query and key see them.
        value_gap: and as value sees them.
        final_gap: from the final norm to the exception of the end-of-text token.
        end_of_text_gap: from that to the exception of the first position.
        first_layer: the layer, from 1, to begin with; those before it come after the final norm. null: the first.
        learning_rate: the peak; null: the schedule's, or 3e-4.
        warmup_steps: before the peak; null: the schedule's, or 10 % of the steps.
        auxiliary_weight: of the loss that keeps the standard deviation before the final norm equal over tokens.
        on_spike: when a removal makes the loss spike: wait until it is over; roll_back to before the removal and go on
            at half the pace; or stop.
        spike_threshold: a spike is a training loss so many nats above the median before the last removal.
        batch_size: rows of a step.
        micro_batch_size: rows of a forward and backward; null: all of the step's.
        sequence_length: tokens in a row; null: 512, or as many as the model takes.
        validation_corpus: what the losses are measured on; null: documents split off the text.
        max_validation_tokens: of it.
        evaluate_every: steps between validations; null: 20 times a run, or less often if more tokens would be
            validated than trained on.
        seed: of the order of the data.
        precision: as in a recipe.
        compile: whether to compile the model's blocks; worth it from some millions of tokens on.
    """

    schedule: str = DERIVED
    steps: int | None = None
    first_step: int | None = None
    feed_forward_gap: int | None = None
    query_key_gap: int | None = None
    value_gap: int | None = None
    final_gap: int | None = None
    end_of_text_gap: int | None = None
    first_layer: int | None = None
    learning_rate: float | None = None
    warmup_steps: int | None = None
    auxiliary_weight: float = 0.0
    on_spike: Literal["wait", "roll_back", "stop"] = "wait"
    spike_threshold: float = 0.5
    batch_size: int = 8
    micro_batch_size: int | None = None
    sequence_length: int | None = None
    validation_corpus: str | None = None
    max_validation_tokens: int = 32_768
    evaluate_every: int | None = None
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["always", "never"] = "never"

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
            raise InputError(f"--schedule: {unknown('schedule', self.schedule, [*PUBLISHED, DERIVED])}")
        elif (published := PUBLISHED[self.schedule]).num_layers != num_layers:
            raise InputError(
                f"--schedule {self.schedule} is for {published.num_layers} layers, and the model has {num_layers}: use "
                f"--schedule {DERIVED}"
            )
        else:
            found = published.schedule
        given = {name: getattr(self, name) for name in vars(found)}
        found = replace(found, **{name: value for name, value in given.items() if value is not None})
        found.check(num_layers, self.num_steps)
        return found

    def recipe(self, corpus: str, tokenizer: str, longest: int) -> Recipe:
        """Return the recipe of the run, and of its control.

        Args:
            corpus: to train on, as in `mixln train`.
            tokenizer: folder of the model's.
            longest: tokens of a row, where nothing else is said.

        Raises:
            InputError: a number is out of range.
        """
        for name in ("steps", "batch_size", "micro_batch_size", "sequence_length", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if not self.auxiliary_weight >= 0:
            raise InputError(f"auxiliary_weight must not be negative, but is {self.auxiliary_weight}")
        self.spike_policy.check()
        published, steps = PUBLISHED.get(self.schedule), self.num_steps
        length = self.sequence_length or longest
        rate, warmup = self.learning_rate, self.warmup_steps
        if published is not None:
            rate = published.learning_rate if rate is None else rate
            warmup = published.warmup_steps if warmup is None else warmup
        step_tokens = self.batch_size * length
        # some published runs end before their cosine does
        is_cut_short = published is not None and published.cosine_steps > published.steps
        cosine_steps = max(steps, published.cosine_steps) if published is not None and is_cut_short else steps
        recipe = Recipe(
            data=fine_tuning_data(
                corpus,
                tokenizer,
                rows=steps * self.batch_size,
                sequence_length=length,
                validation_corpus=self.validation_corpus,
                max_validation_tokens=self.max_validation_tokens,
            ),
            optimizer=OptimizerConfig(
                name="adamw",
                learning_rate=_LEARNING_RATE if rate is None else rate,
                warmup_steps=warmup,
                final_learning_rate_fraction=0.0,
                weight_decay=_WEIGHT_DECAY,
            ),
            steps=cosine_steps,
            stop_step=steps,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
            precision=self.precision,
            evaluate_every=self.evaluate_every or max(1, steps // 20, self.max_validation_tokens // step_tokens),
            evaluation_batch_size=self.micro_batch_size or self.batch_size,
            # a loss that is not finite is a spike; that of a run that waits is left out
            faults=FaultConfig(on_non_finite="skip" if self.on_spike == "wait" else "stop"),
            execution=ExecutionConfig(compile=self.compile),
        )
        recipe.data.check()
        return recipe.check()
