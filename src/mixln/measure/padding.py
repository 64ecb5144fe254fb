"""Whether a row of a batch gives what it gives alone, and what to do if not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixln.measure.batches import ModelBatch
from mixln.measure.comparison import main_output, nearly_equal
from mixln.measure.forward import autocast, call_model, evaluation_mode, model_device

_MASK, _POSITIONS, _TOKENS, _KINDS = "attention_mask", "position_ids", "input_ids", "token_type_ids"


def faithful_batches(
    model: nn.Module, batches: Sequence[ModelBatch], autocast_dtype: torch.dtype | None = None
) -> tuple[list[ModelBatch], str]:
    """The batches in a form in which padding and positions leave no trace, and a note if that is another form.

    The shortest row of the first batch with padding (if no batch has any, its first row) is run alone, as its tokens
    with a mask of ones, and beside the longest row of its batch. If it gives something else there, the batches lose
    their `position_ids` (some models number positions in a way of their own); if it still does, every row becomes a
    batch of its own, without padding. Batches of something else, such as images, are either left as they are or become
    batches of one row.

    Args:
        model: any.
        batches: of any kind.
        autocast_dtype: autocast to this; None: the model's own precision.
    """
    batches = list(batches)
    batch = next((batch for batch in batches if _is_padded(batch)), batches[0])
    kind = type(model).__name__
    if not {_TOKENS, _MASK} <= batch.arguments.keys() <= {_TOKENS, _MASK, _KINDS, _POSITIONS, "use_cache"}:
        several = next((batch for batch in batches if len(batch.documents) > 1), batches[0])
        with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype):
            if _rows_are_apart(model, several, autocast_dtype):
                return batches, ""
        note = (
            f"A {kind} gives other numbers for a row beside others than for the row alone, so every row was run alone."
        )
        return [batch.rows(row, row + 1) for batch in batches for row in range(len(batch.documents))], note
    lengths = batch.arguments[_MASK].sum(1)
    pair = batch.select(torch.tensor(sorted({int(lengths.argmin()), int(lengths.argmax())})))
    row = int(pair.arguments[_MASK].sum(1).argmin())
    with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype):
        alone = _row_alone(model, pair, row)
        for form, note in (
            (pair, ""),
            (_without_positions(pair), f"A {kind} numbers positions in a way of its own, so it was given none."),
        ):
            if nearly_equal(alone, _row_in_batch(model, form, row), autocast_dtype):
                return batches if form is pair else [_without_positions(batch) for batch in batches], note
    note = (
        f"A {kind} gives other numbers for a row with padding beside it than for the row alone, so every row was run "
        "alone."
    )
    return [one for batch in batches for one in _rows_alone(batch)], note


def _rows_are_apart(model: nn.Module, batch: ModelBatch, autocast_dtype: torch.dtype | None) -> bool:
    """Whether the first of two rows gives beside the other what it gives alone; Pixtral makes one row of all images."""
    alone, together = (
        main_output(call_model(model, few.arguments_on(model_device(model))))
        for few in (batch.rows(0, 1), batch.rows(0, 2))
    )
    return len(together) == min(2, len(batch.documents)) and nearly_equal(alone[0], together[0], autocast_dtype)


def _is_padded(batch: ModelBatch) -> bool:
    mask = batch.arguments.get(_MASK)
    return isinstance(mask, Tensor) and not bool(mask.bool().all())


def _row_alone(model: nn.Module, batch: ModelBatch, row: int) -> Tensor:
    (one,) = _rows_alone(batch.rows(row, row + 1))
    return main_output(call_model(model, one.arguments_on(model_device(model))))[0]


def _row_in_batch(model: nn.Module, batch: ModelBatch, row: int) -> Tensor:
    output = main_output(call_model(model, batch.arguments_on(model_device(model))))[row]
    mask = batch.arguments[_MASK][row].bool().to(output.device)
    return output[mask] if len(output) == len(mask) else output


def _without_positions(batch: ModelBatch) -> ModelBatch:
    arguments = {name: value for name, value in batch.arguments.items() if name != _POSITIONS}
    return ModelBatch(arguments, batch.counted, batch.targets, batch.documents)


def _rows_alone(batch: ModelBatch) -> list[ModelBatch]:
    rows: list[ModelBatch] = []
    for number, mask in enumerate(batch.arguments[_MASK].bool()):
        one = batch.rows(number, number + 1)
        rows.append(
            ModelBatch(
                {name: one.arguments[name][:, mask] for name in (_TOKENS, _MASK, _KINDS) if name in one.arguments},
                None if one.counted is None else one.counted[:, mask],
                None if one.targets is None else one.targets[:, mask],
                one.documents,
            )
        )
    return rows
