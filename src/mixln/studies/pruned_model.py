"""What pruning returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixln.records import encode
from mixln.studies.prune_and_heal import HealingReport
from mixln.studies.pruning_request import PruningRecord
from mixln.studies.saved_model import SavedModel


@dataclass(frozen=True, repr=False)
class PrunedModel(SavedModel):
    """A model without some of its layers; its table has one row.

    Attributes:
        record: what was removed, with layers counted from 1, and how it was chosen (`pruning.json`).
        healing: the losses before pruning, after it and after healing (`healing.json`); None: it was not healed.
        work: the folder with the metrics of healing, and the model before it; None: it was not healed.
    """

    record: PruningRecord
    healing: HealingReport | None = None
    work: Path | None = None

    @property
    def removed_layers(self) -> list[int]:
        """The layers that were removed, counted from 1 in the model as it was."""
        return self.record.removed_layers

    def to_dict(self) -> dict[str, Any]:
        """What was removed, as in `pruning.json`, and how it was healed, as in `healing.json`."""
        healing = None if self.healing is None else asdict(self.healing)
        return encode({"folder": str(self.folder), **asdict(self.record), "healing": healing}, type(self).__name__)

    def parts(self) -> Iterator[str]:
        """What was removed, the losses, and where the model is."""
        removed, before = self.removed_layers, self.record.num_layers_before
        yield f"removed {len(removed)} of {before} layers: {', '.join(map(str, removed))} (counted from 1)"
        if (cost := self.record.cost) is not None:
            yield cost.sentence
            if cost.warning is not None:
                yield cost.warning
        if self.record.left_out:
            yield f"left out, as it is of the whole model: {', '.join(self.record.left_out)}"
        if self.healing is not None:
            yield self.healing.sentence
        yield f"{before - len(removed)} layers left: {self.folder}"
        if self.work is not None:
            yield f"metrics and the model before healing: {self.work}"

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """What was removed, and what it cost: on the text that was measured on, and on that of healing."""
        cost = self.record.cost
        record = {name: value for name, value in asdict(self.record).items() if name != "cost"}
        numbers = {name: getattr(cost, name).value if cost else None for name in ("before", "after", "difference")}
        if cost and cost.accuracy:
            numbers |= {"accuracy_before": cost.accuracy.before.value, "accuracy_after": cost.accuracy.after.value}
        losses = {name: getattr(self.healing, name, None) for name in ("loss_before", "loss_pruned", "loss_healed")}
        return [{"folder": str(self.folder), **record, **numbers, **losses}]
