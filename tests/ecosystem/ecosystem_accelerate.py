"""Five steps under accelerate, in as many processes as it is launched with: rows are shared among them.

accelerate launch --cpu --num_processes 2 ecosystem_accelerate.py FOLDER PLACEMENT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, debug_launcher
from ecosystem_tools import build
from torch.utils.data import DataLoader, TensorDataset

STEPS = 5
ROWS = 8
"""Of a step, in all processes together."""

VOCABULARY = 97


def train(folder: Path, placement: str) -> None:
    """Write `record.json`, with the loss of each step over all rows, and `model`."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    model = build(placement, VOCABULARY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # the same rows in every step, so that the loss falls
    ids = torch.randint(VOCABULARY, (ROWS, 16), generator=torch.Generator().manual_seed(0)).repeat(STEPS, 1)
    loader = DataLoader(TensorDataset(ids), batch_size=ROWS // accelerator.num_processes)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses: list[float] = []
    for (rows,) in loader:
        loss = wrapped(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
    accelerator.wait_for_everyone()
    state = accelerator.get_state_dict(wrapped)
    if accelerator.is_main_process:
        accelerator.unwrap_model(wrapped).save_pretrained(folder / "model", state_dict=state)
        record = {"processes": accelerator.num_processes, "kind": type(wrapped).__name__, "losses": losses}
        (folder / "record.json").write_text(json.dumps(record))
    accelerator.end_training()


if __name__ == "__main__":
    for number, placement in enumerate(sys.argv[2:]):
        for processes in (1, 2):
            folder = Path(sys.argv[1]) / f"{number}-{processes}"
            folder.mkdir()
            debug_launcher(train, (folder, placement), num_processes=processes)
