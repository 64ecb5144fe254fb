"""An exponential moving average of the weights, evaluated beside them, and saved beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from mixln.announce import announce
from mixln.training import Callback, StepRecord
from mixln.training.callback import Run
from mixln.training.objective import Evaluation
from mixln.training.run_folder import fill_folder

EMA_FOLDER = "model_ema"
"""In the folder of a run, beside that of the model."""

_MOST_LEFT = 0.01
"""Of the initial weights: who keeps more of them in the average is told."""

_NAMED_LEFT = 0.0095
"""With the decay that is named then, which rounding is not to make too large."""

Save = Callable[[Any, dict[str, Any], Path], None]
"""`Task.save`."""


class MovingAverage(Callback):
    """Keeps an exponential moving average of the weights (EMA), with the decay d:

        average_0 = weights_0        average_t = d * average_(t-1) + (1 - d) * weights_t

    over the steps whose update was made. It is evaluated where the weights are, under the same names with `ema_` before
    them, and in the end it is saved in the folder `model_ema`, beside the model itself.

    On several processes each keeps the average of the part of the weights that it holds.

    Args:
        decay: d.
        every: steps between validations.
        last_step: of the run.
        save: writes a model into a folder, given its weights.
    """

    def __init__(self, decay: float, every: int, last_step: int, save: Save) -> None:
        self._decay, self._every, self._last_step, self._save = decay, every, last_step, save
        self._latest: tuple[int, Evaluation] | None = None
        self._average: dict[str, Tensor] = {}

    def identity(self) -> dict[str, Any]:
        """The decay."""
        return {"decay": self._decay}

    def begin(self, run: Run) -> None:
        """Start from the initial weights."""
        self._average = {name: one.detach().clone() for name, one in run.model.named_parameters()}
        self._latest = None

    def start(self, run: Run) -> None:
        """Keep the run, whose model is saved in the end."""
        self._run = run

    @torch.no_grad()
    def after_step(self, run: Run, record: StepRecord, good: Tensor) -> None:
        """Take in the weights of a step whose update was made; nobody waits for the device to know."""
        del record
        new = (1 - self._decay) * good.float()
        for average, weight in self._pairs(run):
            average.lerp_(weight, new.to(average.device, average.dtype))

    def end_step(self, run: Run, record: StepRecord) -> None:
        """Evaluate the average where the weights are validated."""
        if record.step % self._every == 0 or record.step == self._last_step:
            record.values |= {f"ema_{name}": number for name, number in self._evaluation(run).numbers.items()}

    def tensors(self) -> Mapping[str, Tensor]:
        """The average."""
        return self._average

    def rewind(self, run: Run) -> None:
        """Forget an evaluation of a step that is made again."""
        del run
        self._latest = None

    def result(self) -> dict[str, Any]:
        """Save the average, and return what it is worth.

        Raises:
            InputError: it cannot be written.
        """
        run = self._run
        numbers = self._evaluation(run).numbers
        with self._in_place(run):
            # the whole of a sharded model comes together on the CPU of the main process only
            whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
            weights = get_model_state_dict(run.model, options=whole)
            if run.processes.is_main:
                remedy = "Fix that, and run the same command again: it goes on from the last checkpoint"
                fill_folder(run.folder / EMA_FOLDER, lambda folder: self._save(run.model, weights, folder), remedy)
            run.processes.wait_for_all()
        announce(("average", f"{self._evaluation(run)}: {run.folder / EMA_FOLDER}"))
        return {f"ema_{name}": number for name, number in numbers.items()}

    def _evaluation(self, run: Run) -> Evaluation:
        """Of the average after this step, which is made once."""
        if self._latest is None or self._latest[0] != run.step:
            with self._in_place(run):
                self._latest = run.step, run.validate()
        return self._latest[1]

    @contextmanager
    def _in_place(self, run: Run) -> Iterator[None]:
        """Within the block, the model has the average as its weights; behind it the very weights that it had."""
        with torch.no_grad():
            weights = [weight.clone() for _, weight in self._pairs(run)]
            for average, weight in self._pairs(run):
                weight.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for (_, weight), own in zip(self._pairs(run), weights, strict=True):
                    weight.copy_(own)

    def _pairs(self, run: Run) -> Iterator[tuple[Tensor, Tensor]]:
        """Average and weight of each parameter, as far as this process holds it."""
        for name, parameter in run.model.named_parameters():
            yield _own_part(self._average[name]), _own_part(parameter)


def _own_part(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def fitting_decay(steps: int) -> float:
    """Return a decay with which a little less than 1 % of the initial weights is left; 1 - d has three digits."""
    new = -math.expm1(math.log(_NAMED_LEFT) / steps)
    digits = 2 - math.floor(math.log10(new))
    return round(1 - math.ceil(new * 10**digits) / 10**digits, digits)


def decay_warning(decay: float, steps: int) -> str | None:
    """Return in words that an average keeps too much of the initial weights, decay ** steps; None: it does not."""
    left = decay**steps
    if left <= _MOST_LEFT:
        return None
    return (
        f"with ema_decay {decay}, {left:.0%} of the average are still the initial weights after {steps:,} steps, so "
        f"that it is worth little. {fitting_decay(steps)} or less fits a run of this length"
    )
