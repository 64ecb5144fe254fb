"""How fast a model is without its norms: `python -m benchmarks.norm_free_speed ORIGINAL NORM_FREE`.

In interleaved rounds, on the same tokens: a forward pass of whole rows, eager and compiled, and the generation of
tokens one by one with a cache. Ratios are taken within each round; which model goes first changes every round.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.analysis import estimate
from benchmarks.machine import machine_line
from benchmarks.meter import seconds_of
from mixln.models.load import load_model


def forward(model: nn.Module, input_ids: Tensor) -> None:
    """One forward pass of all rows."""
    with torch.no_grad():
        model(input_ids=input_ids, use_cache=False)


def generate(model: nn.Module, input_ids: Tensor) -> None:
    """The second half of the first row, each token the likeliest, with a cache."""
    prompt = input_ids[:1, : input_ids.shape[1] // 2]
    length = prompt.shape[1]
    # neither may stop early, so that both generate as many
    getattr(model, "generate")(  # noqa: B009 - to the type checker a model cannot
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=length,
        max_new_tokens=length,
        pad_token_id=0,
    )


def main() -> int:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original", help="folder or hub name of the model with its norms")
    parser.add_argument("norm_free", help="folder of the model without")
    parser.add_argument("--rows", type=int, default=8, help="of a forward pass; default: 8")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row; default: 256")
    parser.add_argument("--rounds", type=int, default=20, help="default: 20")
    parser.add_argument("--dtype", default="float32", help="default: float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    models = [load_model(folder, dtype=given.dtype)[0].eval() for folder in (given.original, given.norm_free)]
    compiled = [cast(nn.Module, torch.compile(model)) for model in models]
    vocabulary = models[0].config.get_text_config().vocab_size
    input_ids = torch.randint(vocabulary, (given.rows, given.length), generator=torch.Generator().manual_seed(0))
    print(f"{machine_line()}, {given.threads} threads, {given.dtype}, {given.rows} x {given.length}")
    settings: dict[str, tuple[Callable[[nn.Module, Tensor], None], list[nn.Module]]] = {
        "forward": (forward, [*models]),
        "forward, compiled": (forward, compiled),
        "generation": (generate, [*models]),
    }
    for name, (action, pair) in settings.items():
        for model in pair:
            action(model, input_ids)
        ratios, seconds = [], ([], [])
        for number in range(given.rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                seconds[which].append(seconds_of(action, pair[which], input_ids))
            ratios.append(seconds[1][-1] / seconds[0][-1])
        found = estimate(ratios)
        print(
            f"{name}: {found.median:.3f} of the time [{found.low:.3f} .. {found.high:.3f}] ({found.method}, "
            f"{found.count} rounds; {estimate(seconds[0]).median:.3f} s with norms)",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
