"""What a run has that a table shows or a claim is about, by name.

A quantity that is read off a series of layers is a statistic: one number that says what shape the series has. So a
claim on a figure can be tested over seeds like one on a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean, pstdev

from mixln.errors import InputError
from mixln.placement.words import did_you_mean
from mixln.report.results import RunResult
from mixln.report.statistics import has_diverged


@dataclass(frozen=True)
class Quantity:
    """A number of a run.

    Attributes:
        title: for people, with its unit.
        of: gives it; None: the run has none.
        form: how it is written.
        compared: gives what differences are taken in, where that is something else (the loss, of a perplexity).
        compared_title: what that is.
        from_published: makes the same of a published number.
    """

    title: str
    of: Callable[[RunResult], float | None]
    form: str = ".3f"
    compared: Callable[[RunResult], float | None] | None = None
    compared_title: str = ""
    from_published: Callable[[float], float] = lambda number: number

    def compare(self, run: RunResult) -> float | None:
        """Return what differences are taken in."""
        return (self.compared or self.of)(run)

    @property
    def difference_title(self) -> str:
        """What a difference is in."""
        return self.compared_title or self.title


def _loss(run: RunResult) -> float | None:
    return None if has_diverged(run) else run.validation_loss


def _perplexity(run: RunResult) -> float | None:
    return None if has_diverged(run) else run.perplexity


def _series(run: RunResult, name: str) -> list[float]:
    if run.depth is None or name not in run.depth:
        return []
    found = run.depth[name]
    return found.triangle()[0] if found.axis == "run" else found.values  # of runs, the single layers


def _of_series(name: str, statistic: Callable[[list[float]], float]) -> Callable[[RunResult], float | None]:
    def read(run: RunResult) -> float | None:
        values = _series(run, name)
        found = statistic(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan
        return found if math.isfinite(found) else None

    return read


def _deep_half(values: list[float]) -> float:
    return fmean(values[len(values) // 2 :])


def _last_over_first(values: list[float]) -> float:
    return math.log(values[-1] / values[0]) if values[0] > 0 and values[-1] > 0 else math.nan


def _deep_over_early(values: list[float]) -> float:
    half = len(values) // 2
    return math.log(fmean(values[half:]) / fmean(values[:half]))


QUANTITIES: Mapping[str, Quantity] = {
    "perplexity": Quantity(
        "validation perplexity", _perplexity, ".2f", _loss, "validation loss, nats per token", math.log
    ),
    "field": Quantity("value in the recipe", lambda _: None, "g"),
    "validation_loss": Quantity("validation loss, nats per token", _loss, ".4f"),
    "top1": Quantity(
        "top-1 accuracy on held-out images, per cent",
        lambda run: None if has_diverged(run) or "top1" not in run.values else 100 * run.values["top1"].value,
        ".2f",
    ),
    "angular_distance_deep": Quantity(
        "mean angular distance between the input and the output of a layer, over the deeper half of the layers",
        _of_series("angular_distance", _deep_half),
        ".4f",
    ),
    "removal_deep": Quantity(
        "mean rise of the loss when a layer is removed, over the deeper half of the layers, nats per token",
        _of_series("removal", _deep_half),
        ".4f",
    ),
    "gradient_norm_slope": Quantity(
        "log of the gradient norm at initialisation, mean of the deeper half of the layers over that of the others",
        _of_series("gradient_norm_at_init", _deep_over_early),
    ),
    "gradient_norm_spread": Quantity(
        "standard deviation over layers of the log of the gradient norm at initialisation",
        _of_series(
            "gradient_norm_at_init", lambda values: pstdev(map(math.log, values)) if min(values) > 0 else math.nan
        ),
    ),
    "variance_growth": Quantity(
        "log of the variance of the residual stream, after the last layer over before the first",
        _of_series("variance", _last_over_first),
    ),
}
"""By the names that specifications use."""


def quantity(name: str) -> Quantity:
    """Return a quantity by its name.

    Raises:
        InputError: there is none.
    """
    if name not in QUANTITIES:
        raise InputError(
            f"there is no quantity {name!r}.{did_you_mean(name, QUANTITIES)} Known: {', '.join(QUANTITIES)}"
        )
    return QUANTITIES[name]
