"""What is compared. Each contender is a function that trains a model by the settings and tells the meter of each step.

They are imported in their own processes only, so that none carries the libraries of another.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.meter import Meter
from benchmarks.settings import Settings
from mixln.data import PreparedData


@dataclass(frozen=True)
class Outcome:
    """What a contender knows of its run that the meter does not.

    Attributes:
        loss: of the last step, in nats per predicted token.
        parameters: of the model, the input embedding included.
        added_parameters: how many more than `pre` has, where it was trained beside it.
    """

    loss: float
    parameters: int
    added_parameters: int = 0


Contender = Callable[[Settings, PreparedData, Meter], Outcome]

MIXLN = "mixln"
BESIDE_PRE = "mixln-beside-pre"
MATRIX_PEAK = "matrix-peak"
COMPILED_TRAINER = "trainer-packed-compiled"

_FUNCTIONS = {
    MIXLN: ("engine", "run"),
    BESIDE_PRE: ("engine", "run_beside_pre"),
    "trainer-padded": ("hugging_face_trainer", "run_padded"),
    "trainer-packed": ("hugging_face_trainer", "run_packed"),
    COMPILED_TRAINER: ("hugging_face_trainer", "run_packed_compiled"),
    "trainer-crossing": ("hugging_face_trainer", "run_crossing"),
    "trainer-crossing-compiled": ("hugging_face_trainer", "run_crossing_compiled"),
    "litgpt": ("litgpt_loop", "run"),
    "litgpt-eager": ("litgpt_loop", "run_eager"),
}

DEFAULT_CONTENDERS = (MIXLN, "trainer-padded", "trainer-packed", "litgpt")


def list_contenders() -> list[str]:
    """Return the names of all contenders that train one model."""
    return [name for name in _FUNCTIONS if name != BESIDE_PRE]


def find_contender(name: str) -> Contender:
    """Import a contender.

    Raises:
        ImportError: a library that it needs is not installed.
    """
    module, function = _FUNCTIONS[name]
    return getattr(importlib.import_module(f"benchmarks.contenders.{module}"), function)
