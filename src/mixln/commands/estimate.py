"""`mixln estimate`."""

from __future__ import annotations

import json as json_format
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from mixln.estimate.devices import device_names
from mixln.tasks.recipe import Recipe


def estimate(
    *,
    device: Annotated[str, {"names": device_names()}] = "cpu",
    count: int = 1,
    utilization: float | None = None,
    price: float | None = None,
    json: bool = False,
    recipe: Recipe,
    cache: Path | None = None,
) -> None:
    """Say what a recipe's run needs before it is started: parameters, floating-point operations, memory of each device
    for each way of sharing the model, time and cost. Nothing is trained or downloaded.

    Example:
        mixln estimate --recipe 71m --device h100 --count 8 --price 2.5

    Args:
        device: {names}; cpu, the default: this machine's, measured in about two seconds.
        count: number of devices.
        utilization: share of its peaks that the device reaches over a training step; default: by device, printed.
        price: of one device for one hour, in any currency.
        json: print JSON, in bytes, seconds and hours.
        cache: folder for tokenised data; default: ~/.cache/mixln.
    """
    from rich.console import Console

    from mixln.estimate.run import estimate as estimate_run
    from mixln.estimate.tables import print_estimate

    del cache  # no data are needed; taken so that all arguments of `mixln train` can be given here
    result = estimate_run(recipe, device, count, utilization=utilization, price=price)
    # assumptions name parameters as messages do
    result = replace(result, assumptions=tuple(re.sub(r"`(\w+)`", r"--\1", line) for line in result.assumptions))
    if json:
        print(json_format.dumps(result.to_dict(), indent=2))
    else:
        print_estimate(result, Console())
