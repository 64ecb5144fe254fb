"""How far each block is from the identity map."""

from __future__ import annotations

import torch

from mixln.measure.estimates import DocumentSums, Estimates
from mixln.measure.observation import Measure, Observation


class JacobianDistance(Measure):
    """|| J_l - I ||_F / || I ||_F of each block, J_l = d x_(l+1) / d x_l over all positions of a row.

    Hutchinson's estimator (1989): for v with independent entries +-1, E || (J^T - I) v ||^2 = || J - I ||_F^2; J^T v is
    one backward pass of the block from its recorded input. 0: the block changes nothing, as Curse of Depth (Sun et al.
    2025, section 2) finds for deep Pre-LN layers; 1: as far from the identity as the zero map is. v is 0 at positions
    that do not count. The same documents give the same v, whatever the batches: v is drawn by the document's number.

    Args:
        draws: of v for each batch; the error falls with their root.
        seed: of the draws.
    """

    reads_tokens = True
    replays_blocks = True

    def __init__(self, draws: int = 1, seed: int = 0) -> None:
        self._draws = draws
        self._seed = seed
        self._rows_seen: dict[int, int] = {}
        self._sums = DocumentSums()

    def num_ticks(self, num_blocks: int) -> int:
        """One for each block and draw."""
        return self._draws * num_blocks

    def update(self, observation: Observation) -> None:
        """Count a batch: `draws` forward and backward passes of each block."""
        stack, record, batch = observation.stack, observation.record, observation.batch
        counted = batch.counted_in(observation.hidden_states[0]).cpu()
        width = observation.hidden_states[0].shape[-1]
        squares = torch.zeros(len(counted), len(stack.layers), dtype=torch.float64)
        generators = [self._generator(document) for document in batch.documents.tolist()]
        for _ in range(self._draws):
            directions = torch.stack(
                [_signs(row, width, generator) for row, generator in zip(counted, generators, strict=True)]
            )
            for index, block in enumerate(stack.layers):
                x = observation.hidden_states[index].detach().clone().requires_grad_()
                v = directions.to(x)
                with torch.enable_grad():
                    output = record.calls[index].replay(block, x)
                    (product,) = torch.autograd.grad(output, x, v.to(output))
                difference = torch.where(counted[..., None].to(x.device), product - v, 0.0).cpu().double()
                squares[:, index] += difference.square().sum((1, 2))
                observation.tick()
        self._sums.update(squares / self._draws / width, counted.sum(1), batch.documents)

    def _generator(self, document: int) -> torch.Generator:
        row = self._rows_seen.get(document, 0)
        self._rows_seen[document] = row + 1
        return torch.Generator().manual_seed(hash((self._seed, document, row)) % 2**63)

    def distance(self) -> Estimates:
        """(L,): the distance of each block's Jacobian from the identity.

        Raises:
            InputError: no token was counted.
        """
        return self._sums.estimate().through(lambda square: square.clamp_min(0).sqrt())


def _signs(counted: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    """(tokens, width): +-1 at counted positions, the same for them wherever the padding is; 0 elsewhere."""
    signs = torch.zeros(len(counted), width)
    number = int(counted.sum())
    signs[counted] = torch.randint(2, (number, width), generator=generator).float() * 2 - 1
    return signs
