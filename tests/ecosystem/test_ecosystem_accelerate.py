"""accelerate with two processes (DDP over gloo) trains as one process does with all of the rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ecosystem_tools import load

SCRIPT = Path(__file__).with_name("ecosystem_accelerate.py")
PLACEMENTS = ["mix(alpha=0.5)", "hybrid", "pre+qk_norm+gpas"]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), *PLACEMENTS],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    for number, placement in enumerate(PLACEMENTS):
        folders = [tmp_path / f"{number}-{count}" for count in (1, 2)]
        one, two = (json.loads((folder / "record.json").read_text()) for folder in folders)
        assert (one["processes"], two["processes"]) == (1, 2)
        assert two["kind"] == "DistributedDataParallel"
        assert len(two["losses"]) == 5
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert two["losses"][-1] < two["losses"][0] - 0.05
        alone, together = (load(folder / "model") for folder in folders)
        assert str(together.config.placement) == str(alone.config.placement) == placement
        for name, weight in alone.state_dict().items():
            torch.testing.assert_close(together.state_dict()[name], weight, rtol=0, atol=1e-4, msg=name)
