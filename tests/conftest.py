from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny import tiny_recipe, write_corpus

from mixln.data import PreparedData, prepare_data
from mixln.tasks import Recipe

# models of a few thousand weights lose more to handing work between threads than they gain; in child processes too
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def recipe(corpus: Path) -> Recipe:
    return tiny_recipe(corpus)


@pytest.fixture(scope="session")
def data(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_data(recipe.data, tmp_path_factory.mktemp("cache"))
