"""Performance drops by any score of a whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import torch
from torch import nn

from mixln.errors import InputError
from mixln.measure.estimates import ratio_estimates
from mixln.measure.pruning import without_blocks
from mixln.models.anatomy import BlockStack
from mixln.modes import evaluation_mode
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import ColumnSpec, FigureSpec, Presentation, Series
from mixln.studies.measuring import Entry, Found, series_of
from mixln.studies.stages import ReportStage

Score = Callable[[nn.Module], float | Sequence[float]]
"""A function that says how good a model is; higher is better.

It returns one number, or one for each item (question, document), in the same order each time. If it has a `unit`, the
report shows that. If it has an `identity`, a text that changes with what it computes, a diagnosis that is called again
keeps its values.
"""


class Scores(Entry):
    """Two series for each score; the user chooses its name.

        score:<name>       S of the whole model
        removal:<name>     S of the whole model - S without layer l; positive means harm

    Of one number there are no intervals. Of numbers s_i for items i = 1 .. I, S is their mean, and both intervals are
    over items; that of the drop is of the mean of the I differences, so items that are hard or easy for all add
    no noise. Series of measures have no colon in their names, so no score takes the place of one.

    Args:
        scores: by name; each is called once for the whole model and once without each layer.
    """

    name = "scores"
    rank = 20

    def __init__(self, scores: Mapping[str, Score]) -> None:
        self._scores = scores

    def compute(self, name: str, stack: BlockStack, report: ReportStage | None) -> Found:
        """Take a score.

        Args:
            name: which.
            stack: of the model.
            report: progress.

        Raises:
            InputError: the score does not give as many numbers each time.
        """
        return Found(list(_two_series(stack, name, self._scores[name], report)))

    def shown(self, model: ModelDiagnosis) -> Presentation:
        """One figure and one table of all scores."""
        del model
        figure = FigureSpec(
            "score_removal",
            "Harm done by removing a layer, by score",
            "Score with all layers - score without layer l.",
            "Tasks need layers that the loss can spare, and the other way round.",
            "bars",
            {_removal(name): name for name in self._scores},
            x="removed layer",
        )
        return Presentation([figure], [ColumnSpec(name, _removal(name), "+.3f", "scores") for name in self._scores])

    def sentences(self, model: ModelDiagnosis) -> Iterator[str]:
        """Which layer each score needs most, and which least."""
        for name in self._scores:
            if _whole(name) not in model.series:
                continue  # the diagnosis is not finished
            whole, removal = model.series[_whole(name)], model.series[_removal(name)]
            cheapest, costliest = removal.extreme(min), removal.extreme(max)
            if cheapest is None or costliest is None:
                yield f"{name} ({whole.unit}): without any one layer the model gives no finite number."
                continue
            most, least = (removal.estimates[index].format("+.4f") for index in (costliest, cheapest))
            yield (
                f"{name} ({whole.unit}): the whole model has {whole.estimates[0].format('.4f')}. Removing layer "
                f"{costliest + 1} costs most, {most}; layer {cheapest + 1} least, {least}."
            )


def _whole(name: str) -> str:
    return f"score:{name}"


def _removal(name: str) -> str:
    return f"removal:{name}"


def _two_series(stack: BlockStack, name: str, score: Score, report: ReportStage | None) -> Iterator[Series]:
    def scored() -> torch.Tensor:
        """(items,); one number is an item alone, which has no interval."""
        return torch.as_tensor(score(stack.model), dtype=torch.float64).flatten().cpu()

    unit, drops = getattr(score, "unit", name), list[torch.Tensor]()
    with (
        evaluation_mode(stack.model),
        torch.no_grad(),
        _CountedPasses(stack.model, name, len(stack.layers) + 1, report) as passes,
    ):
        whole = scored()
        passes.end_score()
        for index in range(len(stack.layers)):
            with without_blocks(stack, [index]):
                found = scored()
            passes.end_score()
            if len(whole) != len(found) or not len(whole):
                raise InputError(
                    f"the score {name} gave {len(whole)} numbers for the whole model and {len(found)} without layer "
                    f"{index + 1}: give one number, or one for each item, of the same items each time"
                )
            drops.append(whole - found)
    items = torch.ones(len(whole), dtype=torch.float64)
    yield series_of(_whole(name), "model", unit, ratio_estimates(whole, items))
    yield series_of(_removal(name), "layer", unit, ratio_estimates(torch.stack(drops, dim=1), items))


class _CountedPasses:
    """Counts the forward passes of a model that is scored several times; the first time tells how many each takes."""

    def __init__(self, model: nn.Module, stage: str, scores: int, report: ReportStage | None) -> None:
        self._model, self._stage, self._scores, self._report = model, stage, scores, report
        self._done = self._made = self._each = 0

    def __enter__(self) -> Self:
        self._tell()
        self._hook = self._model.register_forward_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _count(self, *_: object) -> None:
        self._made += 1
        self._tell()

    def end_score(self) -> None:
        """To be called when the model has been scored once more."""
        self._each = self._each or max(1, self._made)  # a score may call parts of the model alone
        self._done, self._made = self._done + 1, 0
        self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            made = min(self._made, self._each) if self._each else self._made
            self._report(self._stage, self._done * self._each + made, self._scores * self._each)
