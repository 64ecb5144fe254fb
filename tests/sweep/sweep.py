"""Everything that is tried of a class, and what came of all classes."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from tests.sweep.building import NotBuiltError, build, takes_images
from tests.sweep.catalogue import Entry, bases_of_causal_models, entry_of
from tests.sweep.diagnosing import MEASURES, check_diagnosis
from tests.sweep.healing import HealingData, check_heal
from tests.sweep.outcome import Outcome, Status, attempt
from tests.sweep.pruning import check_prune, save

CHECKS = ("diagnose", "prune", "heal")
_ORDER: tuple[Status, ...] = ("TRACEBACK", "WRONG", "not built", "refused", "right", "left out")
_SECONDS = 300
"""For a class, before it is given up."""


_HEADS = ("masked", "image_classification", "sequence_classification")
"""Families whose classes are a base model and a head: they are measured without it."""


@dataclass
class Result:
    """What came of a class.

    Attributes:
        name: of the class.
        family: what it was swept as.
        parameters: of the small model.
        outcomes: of all that was tried.
        seconds: it took.
    """

    name: str
    family: str
    parameters: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, check: str) -> Outcome | None:
        """The worst outcome of one of `CHECKS`; None: it was not tried. A refusal of some layers counts as right."""
        group = [found for found in self.outcomes if _group(found.check) == check]
        group.sort(key=lambda found: _ORDER.index(found.status))
        if check == "prune" and group and group[0].status == "refused":
            return group[-1] if group[-1].status == "right" else group[0]
        return group[0] if group else None

    def status(self, check: str) -> str:
        """The status of one of `CHECKS`."""
        found = self.of(check)
        return "-" if found is None else found.status

    @property
    def faults(self) -> list[Outcome]:
        """What is wrong, or a traceback."""
        return [found for found in self.outcomes if found.status in ("WRONG", "TRACEBACK")]


def _group(check: str) -> str:
    return check if check in ("build", "heal") else "prune" if check.startswith("prune") else "diagnose"


def sweep_class(entry: Entry, folder: Path, data: HealingData, *, thorough: bool = True) -> Result:
    """Try everything of a class.

    Args:
        entry: the class.
        folder: to write models in; new.
        data: to heal on.
        thorough: more than the first layer that can be is pruned, and blocks that several classes share are measured
            as fully in each of them.
    """
    result = Result(entry.name, entry.family)
    started = time.perf_counter()
    with quiet():
        try:
            model = build(entry)
        except NotBuiltError as error:
            result.outcomes = [Outcome(check, "not built", str(error)) for check in CHECKS]
            return result
        result.parameters = sum(parameter.numel() for parameter in model.parameters())
        again = entry.family in _HEADS or entry.name in bases_of_causal_models()  # blocks that are tried elsewhere
        result.outcomes += check_diagnosis(model, ("removal",) if again and not thorough else MEASURES)
        try:
            source = save(model, folder / "whole")
        except Exception as error:  # transformers' own
            result.outcomes.append(Outcome("prune", "not built", f"cannot be saved: {error}"))
            return result
        result.outcomes += check_prune(entry, source, folder, (2, 4), every=thorough)
        if entry.family == "causal" and not takes_images(model):
            result.outcomes.append(attempt("heal", lambda: check_heal(entry, source, data, folder / "healed")))
    result.seconds = time.perf_counter() - started
    return result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers prints and warns of."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def sweep(entries: Iterable[Entry], data: HealingData, results: Path, report: Callable[[Result], None]) -> list[Result]:
    """Try everything of many classes, each in a process of its own, so that none ends the others.

    Args:
        entries: the classes.
        data: to heal on.
        results: a line of JSON for each class that is done; those in it are not tried again.
        report: told of each.
    """
    done = {result.name: result for result in read_results(results)}
    with tempfile.TemporaryDirectory() as folder:  # what is imported on the way need not be so in every child
        sweep_class(entry_of("LlamaForCausalLM"), Path(folder), data)
    for entry in entries:
        if entry.name not in done:
            done[entry.name] = _in_child(entry, data)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(done[entry.name])) + "\n")
        report(done[entry.name])
    return [done[entry.name] for entry in entries]


def read_results(results: Path) -> list[Result]:
    """What `sweep` wrote."""
    if not results.exists():
        return []
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return [Result(**{**line, "outcomes": [Outcome(**outcome) for outcome in line["outcomes"]]}) for line in lines]


def _in_child(entry: Entry, data: HealingData) -> Result:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_child, args=(entry, data, theirs))
    child.start()
    theirs.close()
    try:
        if ours.poll(_SECONDS):
            return ours.recv()
        reason = f"gave no answer in {_SECONDS} s"
    except EOFError:
        reason = "the process ended without an answer"
    finally:
        child.kill()
        child.join()
    return Result(entry.name, entry.family, outcomes=[Outcome("diagnose", "TRACEBACK", reason)])


def _child(entry: Entry, data: HealingData, answer: Connection) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        answer.send(sweep_class(entry, folder, data))
    except Exception as error:  # of the sweep itself, or of transformers
        answer.send(Result(entry.name, entry.family, outcomes=[attempt("diagnose", _raising(error))]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _raising(error: Exception) -> Callable[[], Outcome]:
    def work() -> Outcome:
        raise error

    return work
