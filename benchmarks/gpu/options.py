"""What the command line asks for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from benchmarks.contenders import MIXLN, list_contenders
from benchmarks.gpu.turns import Turns
from benchmarks.settings import Settings
from mixln.data import open_corpus
from mixln.errors import InputError
from mixln.tasks.recipes import load_recipe
from mixln.training.precision import PrecisionName

INPUT_ERROR = 2

SCHEMES = ("pre", "mix", "lns")
OTHERS = ("trainer-packed-compiled", "litgpt")

_WARM_UP_STEPS = 2
_TURNS = Turns(count=4, steps=4)


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        sizes: recipes, smallest first.
        schemes: of mixln; the others are compared with the first.
        others: contenders beside mixln.
        rows: of an optimiser step of one process.
        turns: of each contender.
        minutes: for all of it.
        processes: that train together; 1: none do.
        num_layers: of every model; None: the recipe's.
        micro_batch_size: rows; None: the recipe's.
        compile: whether mixln compiles.
        precision: of all.
        diagnosis_tokens: of the diagnosis; None: its defaults.
        toy: whether it is to show only that the benchmark runs.
        documents: corpus.
        cache: folder for tokenizers and tokens.
        output: JSON file.
    """

    sizes: tuple[str, ...] = ("71m", "250m", "1b")
    schemes: tuple[str, ...] = SCHEMES
    others: tuple[str, ...] = OTHERS
    rows: int = 128
    turns: Turns = _TURNS
    minutes: float = 10.0
    processes: int = 1
    num_layers: int | None = None
    micro_batch_size: int | None = None
    compile: bool = True
    precision: PrecisionName = "bfloat16"
    diagnosis_tokens: int | None = None
    toy: bool = False
    documents: str = "python"
    cache: Path = Path.home() / ".cache" / "mixln"
    output: Path = Path("out/benchmarks/gpu.json")

    def settings(self, size: str, tokenizer: Path) -> Settings:
        """Return the settings of a size's runs.

        Raises:
            InputError: the rows of a step are no multiple of those of a micro-batch.
        """
        rows = self.micro_batch_size or min(self.rows, load_recipe(size).micro_batch_size or self.rows)
        if self.rows % rows:
            raise InputError(f"--rows {self.rows} is no multiple of {size}'s {rows} rows of a micro-batch")
        cores = len(os.sched_getaffinity(0))
        return Settings(
            size=size,
            documents=self.documents,
            tokenizer=str(tokenizer),
            micro_batch_size=rows,
            accumulation=self.rows // rows,
            warm_up_steps=_WARM_UP_STEPS,
            steps=self.turns.total,
            threads=int(os.environ.get("OMP_NUM_THREADS") or cores),
            precision=self.precision,
            cache=str(self.cache),
            num_layers=self.num_layers,
            compile=self.compile,
        )


_TOY = Options(
    sizes=("nano",),
    others=("trainer-packed",),
    rows=4,
    turns=Turns(count=2, steps=2),
    num_layers=2,
    micro_batch_size=2,
    compile=False,
    diagnosis_tokens=1024,
    toy=True,
    output=Path("out/benchmarks/gpu-toy.json"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(INPUT_ERROR, f"error: {message} (python -m benchmarks.gpu --help)\n")


def read_options(arguments: list[str] | None, gpus: int) -> Options:
    """Return what the command line asks for, on a machine with so many GPUs.

    Raises:
        InputError: there is no GPU, and the models are no toys; there is no such corpus; or numbers do not go together.
        PlacementError: a scheme is not one.
    """
    given = _parser().parse_args(arguments)
    if not given.toy and gpus == 0:
        raise InputError("PyTorch finds no GPU here. --toy runs the same on the processor, with a tiny model")
    options = replace(_TOY if given.toy else Options(), processes=max(1, gpus))
    changed = {name: value for name, value in vars(given).items() if value is not None and hasattr(options, name)}
    for name in ("cache", "output"):
        if name in changed:
            changed[name] = Path(changed[name]).expanduser()
    for name in ("sizes", "schemes", "others"):
        if name in changed:
            changed[name] = tuple(changed[name])
    turns = Turns(given.rounds or options.turns.count, given.steps or options.turns.steps)
    options = replace(options, **{**changed, "turns": turns})
    for size in options.sizes:
        for scheme in options.schemes:
            replace(options.settings(size, Path()), placement=scheme).recipe()
    open_corpus(options.documents)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m benchmarks.gpu",
        description="Measure mixln on a GPU beside other trainers: speed, memory, resuming, diagnosis, estimate.",
        epilog="example: python -m benchmarks.gpu --sizes 71m 250m --minutes 5",
        allow_abbrev=False,
    )
    contenders = [name for name in list_contenders() if name != MIXLN]
    parser.add_argument("--sizes", nargs="+", metavar="RECIPE", help="shipped or files; default: 71m 250m 1b")
    parser.add_argument("--schemes", nargs="+", metavar="SCHEME", help=f"default: {' '.join(SCHEMES)}")
    parser.add_argument(
        "--others",
        nargs="*",
        choices=contenders,
        metavar="NAME",
        help=f"of {', '.join(contenders)}; default: {' '.join(OTHERS)}",
    )
    parser.add_argument("--minutes", type=_positive(float), help="for all of it; default: 10")
    parser.add_argument("--rows", type=_positive(int), help="rows of 256 tokens in a step; default: 128")
    parser.add_argument("--micro-batch-size", type=_positive(int), help="rows; default: the recipe's")
    parser.add_argument("--rounds", type=_positive(int), help="turns of each contender; default: 4")
    parser.add_argument("--steps", type=_positive(int), help="measured steps of a turn; default: 4")
    parser.add_argument("--layers", dest="num_layers", type=_positive(int), help="blocks; default: the recipe's")
    parser.add_argument("--processes", type=_positive(int), help="that train together; default: one for each GPU")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="mixln; default: yes, not with --toy")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], help="default: bfloat16")
    parser.add_argument("--diagnosis-tokens", type=_positive(int), help="default: as `mixln diagnose`")
    parser.add_argument("--toy", action="store_true", help="a tiny model, on the processor too, to see that this runs")
    parser.add_argument("--documents", metavar="FILE", help="corpus; default: python, the standard library's own text")
    parser.add_argument("--cache", help="folder for the tokenizer and the tokens; default: ~/.cache/mixln")
    parser.add_argument("--output", help="JSON file; the table stands beside it; default: out/benchmarks/gpu.json")
    return parser


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{value} is not above 0")
        return value

    number.__name__ = "number above 0"
    return number
