"""Whether an output depends on what it should not: other rows of a batch, padding, or the tokens that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mixln.measure.batches import ModelBatch
from mixln.measure.comparison import main_output, nearly_equal
from mixln.measure.forward import autocast
from mixln.modes import evaluation_mode

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
    is_text = {_TOKENS, _MASK} <= batch.arguments.keys() <= {_TOKENS, _MASK, _KINDS, _POSITIONS, "use_cache"}
    if not is_text:
        several = next((batch for batch in batches if len(batch.documents) > 1), batches[0])
        if _rows_are_apart(model, several, autocast_dtype):
            return batches, ""
    else:
        lengths = batch.arguments[_MASK].sum(1)
        pair = batch.select(torch.tensor(sorted({int(lengths.argmin()), int(lengths.argmax())})))
        row = int(pair.arguments[_MASK].sum(1).argmin())
        alone = _output(model, _row_alone(pair, row), autocast_dtype)[0]
        if nearly_equal(alone, _row_in_batch(model, pair, row, autocast_dtype), autocast_dtype):
            return batches, ""
        if nearly_equal(alone, _row_in_batch(model, _without_positions(pair), row, autocast_dtype), autocast_dtype):
            note = f"A {type(model).__name__} numbers positions in a way of its own, so it was given none."
            return [_without_positions(batch) for batch in batches], note
    beside = "with padding beside it" if is_text else "beside others"
    note = (
        f"A {type(model).__name__} gives other numbers for a row {beside} than for the row alone, so every row was run "
        "alone."
    )
    one_row = _row_alone if is_text else lambda batch, row: batch.rows(row, row + 1)
    return [one_row(batch, row) for batch in batches for row in range(len(batch.documents))], note


def sees_what_follows(model: nn.Module, batch: ModelBatch, autocast_dtype: torch.dtype | None = None) -> bool:
    """Whether the output for the first half of a row changes with the tokens of the second half.

    Args:
        model: gives logits.
        batch: of text, as `input_ids`; its first row is run twice.
        autocast_dtype: autocast to this; None: the model's own precision.
    """
    row = batch.rows(0, 1)
    tokens = row.arguments[_TOKENS]
    half = tokens.shape[1] // 2
    changed = tokens.clone()
    changed[:, half:] = tokens[:, :1]
    before, after = (
        _output(model, replace(row, arguments={**row.arguments, _TOKENS: ids}), autocast_dtype)[0, :half]
        for ids in (tokens, changed)
    )
    return half > 0 and not nearly_equal(before, after, autocast_dtype)


def _output(model: nn.Module, batch: ModelBatch, autocast_dtype: torch.dtype | None) -> Tensor:
    with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype):
        return main_output(batch.run(model))


def _rows_are_apart(model: nn.Module, batch: ModelBatch, autocast_dtype: torch.dtype | None) -> bool:
    """Whether the first of two rows gives beside the other what it gives alone; Pixtral makes one row of all images."""
    alone, together = (_output(model, batch.rows(0, end), autocast_dtype) for end in (1, 2))
    return len(together) == min(2, len(batch.documents)) and nearly_equal(alone[0], together[0], autocast_dtype)


def _is_padded(batch: ModelBatch) -> bool:
    mask = batch.arguments.get(_MASK)
    return isinstance(mask, Tensor) and not bool(mask.bool().all())


def _row_in_batch(model: nn.Module, batch: ModelBatch, row: int, autocast_dtype: torch.dtype | None) -> Tensor:
    output = _output(model, batch, autocast_dtype)[row]
    mask = batch.arguments[_MASK][row].bool().to(output.device)
    return output[mask] if len(output) == len(mask) else output


def _without_positions(batch: ModelBatch) -> ModelBatch:
    return replace(batch, arguments={name: value for name, value in batch.arguments.items() if name != _POSITIONS})


def _row_alone(batch: ModelBatch, row: int) -> ModelBatch:
    """A row of text without its padding."""
    one = batch.rows(row, row + 1)
    mask = one.arguments[_MASK][0].bool()
    return ModelBatch(
        {name: one.arguments[name][:, mask] for name in (_TOKENS, _MASK, _KINDS) if name in one.arguments},
        None if one.counted is None else one.counted[:, mask],
        None if one.targets is None else one.targets[:, mask],
        one.documents,
    )
