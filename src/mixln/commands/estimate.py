"""`mixln estimate`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

from mixln.announce import announce
from mixln.commands.fields import RunFields
from mixln.commands.settings import settled_recipe
from mixln.estimation.devices import device_names
from mixln.signatures import checked_arguments
from mixln.tasks.image_config import ImageTrainingConfig
from mixln.tasks.kinds import kind_of
from mixln.tasks.recipe import Recipe

if TYPE_CHECKING:
    from mixln.estimation.run_estimate import RunEstimate


@checked_arguments
def estimate(
    *,
    device: Annotated[str, {"names": device_names()}] = "cpu",
    count: int = 1,
    utilization: float | None = None,
    price: float | None = None,
    recipe: Recipe | ImageTrainingConfig | str | Path = "nano",
    cache: str | Path | None = None,
    **changes: Unpack[RunFields],
) -> RunEstimate:
    """Say what a recipe's run needs before it is started: parameters, floating-point operations, memory of each device
    for each way of sharing the model, time and cost. Nothing is trained or downloaded.

    Example:
        mixln estimate --recipe 71m --device h100 --count 8 --price 2.5

    Args:
        device: The device: {names}. The speed of cpu, this machine's, is measured in about two seconds.
        count: The number of devices.
        utilization: The share of its peaks that the device reaches over a training step. Default: by device, printed.
        price: The price of one device for one hour, in any currency. The cost is in the same currency.
        recipe: A recipe, the name of a shipped one, or a YAML file.
        cache: The folder for tokenised data. Nothing is read from it.
        **changes: Fields of the recipe that differ, as for `train`.

    Returns:
        The estimate, with what it assumes; its table has a row for each way of sharing the model.

    Raises:
        InputError: there is no such device, a number is out of range, or the recipe cannot be shared among the devices.
        PlacementError: the recipe's model cannot be built.
    """
    recipe = settled_recipe(recipe, changes)
    announce(
        ("model", kind_of(recipe).model_in_words(recipe)),
        ("device", f"{count} x {device}" + (", this machine, whose speed is measured now" if device == "cpu" else "")),
    )
    from mixln.estimation.run import estimate as estimate_run

    del cache  # no data are needed; taken so that all arguments of `mixln train` can be given here
    result = estimate_run(recipe, device, count, utilization=utilization, price=price)
    # assumptions name parameters as messages do
    return replace(result, assumptions=tuple(re.sub(r"`(\w+)`", r"--\1", line) for line in result.assumptions))
