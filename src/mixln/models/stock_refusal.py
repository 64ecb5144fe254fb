"""What config.json says so that stock classes do not open a placement that they would not execute.

Stock classes ignore fields that they do not know, and some placements have the very parameters of a stock model. So a
placement that they would ignore gets an `initializer_range` that their validation rejects, and that ours takes off
again. Not a field that `PreTrainedConfig` itself checks: the Trainer reads config.json with it when it resumes.
"""

from __future__ import annotations

from typing import Any

from mixln.models.transformers_internals import TRANSFORMERS_DYNAMIC_MODULE_NAME
from mixln.placement import Placement, PlacementError

_REFUSAL = "mixln placement"
_OWN_INITIALIZER_RANGE = "own_initializer_range"


def put_refusal_on(output: dict[str, Any], placement: str) -> None:
    """Change what goes into config.json so that stock classes refuse it, with the reason and the way that works."""
    output[_OWN_INITIALIZER_RANGE] = output["initializer_range"]
    output["initializer_range"] = (
        f"{_REFUSAL} {placement!r}: `import mixln`, then load with an Auto class "
        "(or, if the folder holds its own code, with trust_remote_code=True)"
    )


def take_refusal_off(config: Any, further_fields: dict[str, Any]) -> None:
    """Take back `put_refusal_on`, in a config's fields and in those that it has no attribute for.

    Raises:
        PlacementError: the refusal is of another placement than the config's, which somebody has changed by hand.
    """
    own = further_fields.pop(_OWN_INITIALIZER_RANGE, None)
    refusal = str(config.initializer_range)
    if refusal.startswith(_REFUSAL):
        written = str(Placement.parse(config.placement))
        if not refusal.startswith(f"{_REFUSAL} {written!r}:"):
            raise PlacementError(
                f"this config says placement {written!r}, but was written for another ({refusal.partition(':')[0]}): "
                "the weights would compute something else. Put it back. To change the placement, load, then "
                "mixln.apply_placement"
            )
        config.initializer_range = own
    # folders of before had it in `layer_types`
    if any(str(layer_type).startswith(_REFUSAL) for layer_type in further_fields.get("layer_types") or ()):
        further_fields.pop("layer_types")


def lies_in_a_folder(model_or_config: type) -> bool:
    """Whether a class is from the python file of a self-contained folder, and not from the installed library."""
    return model_or_config.__module__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")
