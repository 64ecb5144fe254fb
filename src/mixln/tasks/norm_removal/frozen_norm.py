"""A norm whose scale can be frozen, one path and one class of positions at a time.

    real     N(x) = gamma * (x - mean(x)) / std(x) + beta,  std(x) = sqrt(mean((x - mean(x))^2) + eps)
    frozen   N(x) = gamma * (x - mean(x)) / sigma[class of the token] + beta

RMSNorm has no mean and no beta. sigma is a constant: the average std that the norm saw in training, by class.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mixln.placement import ArchitectureNorm
from mixln.tasks.norm_removal.schedule import NormPath

PositionClass = Literal["ordinary", "first_position", "end_of_text"]
CLASSES: tuple[PositionClass, ...] = get_args(PositionClass)
ORDINARY, FIRST_POSITION, END_OF_TEXT = range(len(CLASSES))

_DECAY = 0.9
"""Of the moving average, a step."""


class TokenClasses:
    """The class of every token that the model is reading: what its frozen norms share.

    Attributes:
        end_of_text: id of the end-of-text token; None: no token has that class.
        ids: (batch, sequence), int64, each an index into `CLASSES`; None before the first forward.
    """

    def __init__(self, end_of_text: int | None) -> None:
        self.end_of_text = end_of_text
        self.ids: Tensor | None = None

    def read(self, input_ids: Tensor, position_ids: Tensor) -> None:
        """Take the classes of some tokens: the first of each document, then the end-of-text tokens, then the rest.

        Args:
            input_ids: (batch, sequence).
            position_ids: of the same shape or (1, sequence); 0 where a document begins.
        """
        ids = torch.zeros_like(input_ids)
        if self.end_of_text is not None:
            ids = torch.where(input_ids == self.end_of_text, END_OF_TEXT, ids)
        self.ids = torch.where(position_ids == 0, FIRST_POSITION, ids)


class FrozenScaleNorm(nn.Module):
    """A norm that takes over another's parameters, and whose scale can be frozen; LN-free (Baroni et al. 2025).

    While it trains, it adds up the standard deviations that it sees; `finish_step` moves the averages, and nothing does
    in evaluation. What is frozen and at which sigma are buffers, part of every checkpoint; they choose between the
    token's own std and sigma on the device, so that freezing changes no graph and waits for nothing.

    Args:
        norm: the architecture's own, whose weight and bias, if any, it takes over.
        description: of that norm.
        paths: readers of the output.
        layer: that it belongs to, from 0; None: it stands before the head.
        classes: of the tokens that it is called with.

    Attributes:
        frozen: (paths,), bool.
        sigma: (paths, classes), float32: the constants, meaningful where frozen.
        average_std: (classes,), float32: the moving average.
        seen: (classes,), bool: whether the average has seen a token of the class.
        value_output: what the value projection is to read, if `paths` has it; of the last forward.
        keeps_std: whether `own_std` is wanted.
        own_std: (batch, sequence), float32: the tokens' own, of the last forward.
    """

    frozen: Tensor
    sigma: Tensor
    average_std: Tensor
    seen: Tensor
    totals: Tensor

    def __init__(
        self,
        norm: nn.Module,
        description: ArchitectureNorm,
        paths: tuple[NormPath, ...],
        layer: int | None,
        classes: TokenClasses,
    ) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = getattr(norm, "weight", None)
        self.bias: nn.Parameter | None = getattr(norm, "bias", None)
        self.eps, self.centered = description.eps, description.centered
        self.paths, self.layer, self.classes = paths, layer, classes
        self.value_output: Tensor | None = None
        self.keeps_std = False
        self.own_std: Tensor | None = None
        number = len(CLASSES)
        device = None if self.weight is None else self.weight.device
        self.register_buffer("frozen", torch.zeros(len(paths), dtype=torch.bool, device=device))
        self.register_buffer("sigma", torch.ones(len(paths), number, device=device))
        self.register_buffer("average_std", torch.ones(number, device=device))
        self.register_buffer("seen", torch.zeros(number, dtype=torch.bool, device=device))
        # since `FrozenNorms.begin_step`, by class: the sum of the stds, and the number of tokens
        self.register_buffer("totals", torch.zeros(2, number, device=device))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return what the first path reads, (batch, sequence, hidden); the second's is in `value_output`."""
        precise = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        centered = precise - precise.mean(-1, keepdim=True) if self.centered else precise
        own_std = torch.sqrt(centered.pow(2).mean(-1, keepdim=True) + self.eps)
        ids = self.classes.ids
        assert ids is not None, "the model was called without its frozen norms' hook"
        if self.training and torch.is_grad_enabled():
            self._add_up(own_std.detach().squeeze(-1), ids)
        outputs = [
            self._scaled(centered, own_std, ids, number, hidden_states.dtype) for number in range(len(self.paths))
        ]
        self.own_std = own_std.squeeze(-1) if self.keeps_std else None
        self.value_output = outputs[-1] if "value" in self.paths else None
        return outputs[0]

    def _scaled(self, centered: Tensor, own_std: Tensor, ids: Tensor, path: int, dtype: torch.dtype) -> Tensor:
        sigma = self.sigma[path].to(centered.dtype)[ids].unsqueeze(-1)
        output = (centered / torch.where(self.frozen[path], sigma, own_std)).to(dtype)
        if self.weight is not None:
            output = output * self.weight
        return output if self.bias is None else output + self.bias

    @torch.no_grad()
    def _add_up(self, own_std: Tensor, ids: Tensor) -> None:
        member = (ids.unsqueeze(-1) == torch.arange(len(CLASSES), device=ids.device)).to(self.totals.dtype)
        total = (member * own_std.unsqueeze(-1).to(self.totals.dtype)).sum((0, 1))
        self.totals += torch.stack((total, member.sum((0, 1))))

    @torch.no_grad()
    def finish_step(self, totals: Tensor, good: Tensor) -> None:
        """Move the averages by a step's `totals` (2, classes), added up over all processes, if it was a good one."""
        mean = totals[0] / totals[1].clamp(min=1)
        usable = (totals[1] > 0) & mean.isfinite() & good
        moved = torch.where(self.seen, _DECAY * self.average_std + (1 - _DECAY) * mean, mean)
        self.average_std.copy_(torch.where(usable, moved, self.average_std))
        self.seen |= usable

    @torch.no_grad()
    def freeze(self, path: NormPath) -> None:
        """Freeze the scale that a path sees, for good, at the averages; a class never seen is an ordinary one."""
        number = self.paths.index(path)
        self.sigma[number] = torch.where(self.seen, self.average_std, self.average_std[ORDINARY])
        self.frozen[number] = True

    @torch.no_grad()
    def merge(self, position_class: PositionClass) -> None:
        """Give the tokens of a class the ordinary sigma."""
        self.sigma[:, CLASSES.index(position_class)] = self.sigma[:, ORDINARY]

    def extra_repr(self) -> str:
        """Show the paths."""
        return f"paths={', '.join(self.paths)}, centered={self.centered}, eps={self.eps}"
