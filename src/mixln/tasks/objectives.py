"""The next-token loss of a model of any architecture, chosen by what the model really computes.

Documents are packed into rows. Most decoders take a mask and positions that keep them apart; where one does not (its
positions come from elsewhere, it carries a state, it has masks of its own), each document gets a row of its own, with
ordinary padding; or, where padding matters too, a forward of its own. Which is right is found by running the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixln.measure.forward import call_model
from mixln.models.encoding import IGNORED_TARGET
from mixln.tasks.objective import CausalLanguageModelObjective


class LogitsObjective(CausalLanguageModelObjective):
    """The same loss from the model's own logits, for heads that do more than a matrix and a bias do (caps, scales).

    It takes more memory: the logits of all tokens are there at once.
    """

    def forward(self, input_ids: Tensor, position_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss summed over predicted tokens, in nats, a scalar; all arguments (batch, sequence), int64."""
        mask = self.mask(position_ids)
        logits = self.model(input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False).logits
        return summed_loss(logits, targets)


class DocumentRowsObjective(CausalLanguageModelObjective):
    """The same loss with a row for each document, padded on the right: right for every causal model, but slower.

    The model gets tokens and an ordinary mask of padding, and nothing else, as in use.
    """

    def forward(self, input_ids: Tensor, position_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss summed over predicted tokens, in nats, a scalar; all arguments (batch, sequence), int64."""
        column = position_ids.flatten()
        row = (column == 0).cumsum(0) - 1
        predicts = torch.zeros(int(row[-1]) + 1, dtype=torch.bool, device=row.device)
        predicts[row[targets.flatten() != IGNORED_TARGET]] = True
        if not predicts.any():  # a forward all the same: processes that share a model make as many each
            predicts[0] = True
        kept = predicts[row]
        row, column = (predicts.cumsum(0) - 1)[row[kept]], column[kept]
        shape = int(row[-1]) + 1, int(column.max()) + 1

        def spread(values: Tensor, fill: int) -> Tensor:
            result = values.new_full(shape, fill)
            result[row, column] = values
            return result

        tokens = input_ids.flatten()[kept]
        mask = spread(torch.ones_like(tokens), 0)
        logits = call_model(self.model, {"input_ids": spread(tokens, int(tokens[0])), "attention_mask": mask}).logits
        return summed_loss(logits, spread(targets.flatten()[kept], IGNORED_TARGET))


class SingleDocumentsObjective(CausalLanguageModelObjective):
    """The same loss with a forward for each document, alone and without padding: right by definition, and slowest.

    For models that ignore the mask of padding, or choose what attention sees from padding too (sparse indexers).
    """

    def forward(self, input_ids: Tensor, position_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss summed over predicted tokens, in nats, a scalar; all arguments (batch, sequence), int64."""
        starts = (position_ids.flatten() == 0).nonzero().flatten().tolist()
        tokens, wanted = input_ids.flatten(), targets.flatten()
        losses = [
            summed_loss(call_model(self.model, {"input_ids": tokens[None, start:end]}).logits, wanted[None, start:end])
            for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True)
            if (wanted[start:end] != IGNORED_TARGET).any()
        ]
        if not losses:  # a loss of 0 that has gradients
            return call_model(self.model, {"input_ids": tokens[None, :1]}).logits.sum() * 0.0
        return torch.stack(losses).sum()


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy summed over predicted tokens, softmax in float32: a scalar."""
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED_TARGET, reduction="sum"
    )
