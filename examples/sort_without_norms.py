"""Remove the norms of a GPT-2 that sorts, and count the inputs that it still sorts.

The model sorts six digits out of 0, 1 and 2: it reads the six, and then writes them in order; its vocabulary is those
three tokens. Nothing of it is text, so this shows how to give the training engine rows of one's own.

    python examples/sort_without_norms.py MODEL OUT --steps 600

MODEL: a folder with a GPT-2 of that kind (vocabulary 3, at least 11 positions).
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mixln.data import Batch, PackedDataset, PreparedData
from mixln.tasks.norm_removal import NormRemoval, NormRemovalConfig
from mixln.training import train

DIGITS = 6
INPUTS = list(itertools.product(range(3), repeat=DIGITS))


class SortingRows(PackedDataset):
    """Row i is an input and its digits in order; only these are predicted."""

    def __init__(self, inputs: Sequence[Sequence[int]]) -> None:
        self._rows = torch.tensor([[*digits, *sorted(digits)] for digits in inputs])

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Any) -> Batch:
        """Return these rows, from 0."""
        tokens = self._rows[torch.as_tensor(list(rows))]
        input_ids, targets = tokens[:, :-1].clone(), tokens[:, 1:].clone()
        targets[:, : DIGITS - 1] = -100
        return Batch(input_ids, targets, torch.arange(input_ids.shape[1]).expand_as(input_ids).clone())


class SortingData(PreparedData):
    """Rows that do not come from a store of tokens."""

    @property
    def largest_token(self) -> int:
        """The largest digit."""
        return 2


def digit_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the three digits, of which nothing ends a text."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"0": 0, "1": 1, "2": 2})), model_max_length=11)


@torch.no_grad()
def count_sorted(model: PreTrainedModel) -> int:
    """Return how many of all 729 inputs the model sorts, the likeliest digit taken each time."""
    tokens = torch.tensor(INPUTS)
    for _ in range(DIGITS):
        tokens = torch.cat((tokens, model.eval()(tokens).logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    return int((tokens[:, DIGITS:] == torch.tensor([sorted(digits) for digits in INPUTS])).all(-1).sum())


def main() -> int:
    """Remove the norms, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    given = parser.parse_args()

    tokenizer, source = digit_tokenizer(), given.out / "source"
    shutil.copytree(given.model, source, dirs_exist_ok=True)
    tokenizer.save_pretrained(source)
    shuffled = random.Random(0).sample(INPUTS, len(INPUTS))
    rows = {"train": SortingRows(shuffled), "validation": SortingRows(shuffled)}
    data = SortingData(tokenizer, **rows, statistics=None, fingerprint="all inputs")  # pyright: ignore

    config = NormRemovalConfig(steps=given.steps, learning_rate=given.learning_rate, batch_size=64, sequence_length=11)
    original: Any = AutoModelForCausalLM.from_pretrained(source)
    num_layers = original.config.num_hidden_layers
    schedule = config.removal_schedule(num_layers)
    run_config = replace(config.recipe("python", str(source), 11), precision="float32")
    removal = NormRemoval(source, run_config, data, schedule, num_layers, config.spike_policy)
    trained = train(removal, given.out / "run")
    result = trained.result or {}
    print(f"folding moved logits of up to {result['largest_logit']:.3g} by {result['difference']:.2g}")
    print(f"removals before steps {result['made']}")
    print(f"sorted: {count_sorted(original)} of {len(INPUTS)} with norms, {count_sorted(trained.model)} without")
    print(f"the model without norms: {given.out / 'run' / 'model'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
