"""Time until the command line answers, and until a model of this library can be made, as multiples of plain imports.

    python -m benchmarks.startup [--rounds 15]

Every measurement is a process of its own; a round runs each once, in the same order, so that whatever slows the machine
slows all of them. Processor time (user and system) is compared, since other programs disturb it less than wall time.
A ratio is the median over the rounds of the ratio within a round; lowest and highest are printed beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from benchmarks.machine import machine_line
from mixln.commands import COMMANDS

COMMAND_LINE = "import argparse, rich.console"
MODELS = "import torch; from transformers import LlamaForCausalLM"

MEASURED: dict[str, dict[str, list[str]]] = {
    COMMAND_LINE: {
        "mixln --version": ["-m", "mixln", "--version"],
        "mixln --help": ["-m", "mixln", "--help"],
        **{f"mixln {name} --help": ["-m", "mixln", *name.split(), "--help"] for name in COMMANDS},
        "mixln trian": ["-m", "mixln", "trian"],
        "mixln train --stepps 5": ["-m", "mixln", "train", "--stepps", "5"],
        "mixln schemes": ["-m", "mixln", "schemes"],
        "mixln schemes mix": ["-m", "mixln", "schemes", "mix"],
    },
    MODELS: {
        "import mixln": ["-c", "import mixln"],
        "mixln.MixLNLlamaForCausalLM": ["-c", "import mixln; mixln.MixLNLlamaForCausalLM"],
    },
}
"""By the plain imports that they are compared with: names, and arguments of Python."""


def processor_seconds(arguments: list[str]) -> float:
    """Run Python and return the processor time that it took."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    rounds = parser.parse_args().rounds
    print(f"{machine_line()}; {rounds} rounds, Python {sys.version.split()[0]}")
    for plain, measured in MEASURED.items():
        everything = {plain: ["-c", plain], **measured}
        seconds: dict[str, list[float]] = {name: [] for name in everything}
        for number in range(rounds + 1):
            for name, arguments in everything.items():
                took = processor_seconds(arguments)
                if number > 0:  # the first round reads files that later ones find in memory
                    seconds[name].append(took)
        for name, own in seconds.items():
            ratios = [one / base for one, base in zip(own, seconds[plain], strict=True)]
            print(
                f"{name:40} {1000 * statistics.median(own):7.0f} ms  x {statistics.median(ratios):.2f}  "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
