from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ecosystem_tools import PLACEMENTS, build, grown

from mixln.data import PreparedData


@pytest.fixture(scope="session")
def folders(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a model with its tokenizer once for each placement and architecture."""
    root = tmp_path_factory.mktemp("models")

    def folder(placement: str = PLACEMENTS[0], architecture: str = "llama") -> Path:
        path = root / f"{architecture}-{placement}"
        if not path.exists():
            model = grown(build(placement, len(data.tokenizer), architecture))
            model.save_pretrained(path)
            data.tokenizer.save_pretrained(path)
        return path

    return folder
