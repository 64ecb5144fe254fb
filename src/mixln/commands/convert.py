"""`mixln convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mixln.announce import announce
from mixln.errors import InputError
from mixln.exchange.published import PUBLISHED_NORM_TYPES
from mixln.signatures import checked_arguments

if TYPE_CHECKING:
    from mixln.studies.saved_model import ConvertedModel

_TARGETS = ("hf", "hf-neutral-norms")


@checked_arguments
def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: Annotated[str | None, {"names": _TARGETS}] = None,
    placement: str | None = None,
    norm_type: Annotated[str | None, {"names": PUBLISHED_NORM_TYPES}] = None,
    post_num: int | None = None,
) -> ConvertedModel:
    """With --placement: read a checkpoint folder of the published Mix-LN / LayerNorm Scaling training code, whose
    config does not say how its norms are placed, and write one that AutoModelForCausalLM opens. With --to hf: write a
    model of this library as one of transformers' own classes, which opens without mixln, if one of them computes
    exactly the same; what was written is compared with the source. With --to hf-neutral-norms: the same for a model
    without norms, whose class has norms that are made to do nothing.

    Example:
        mixln convert checkpoints/model_10001 converted --placement 'mix(post_layers=3)'
        mixln convert runs/train/model exported --to hf

    Args:
        source: The folder with config.json and the weights.
        out: The folder to write. It must be new or empty.
        to: Export to hf, the classes of Hugging Face transformers, or to hf-neutral-norms, for a model without norms.
        placement: Import a model that was trained with this placement.
        norm_type: The NORM_TYPE of the training script, instead of a placement: {names}.
        post_num: The POST_NUM of the training script, for Mix-LN.

    Returns:
        The model that was written.

    Raises:
        PlacementError: there is no such placement.
        InputError: the checkpoint is damaged or of another placement, no class of transformers computes the model's
            function, or `out` holds something.
    """
    source, out = Path(source), Path(out)
    announce(("model", source), ("folder", out))
    from mixln.studies.saved_model import ConvertedModel

    if to is None:
        from mixln.exchange.convert import save_converted

        converted = save_converted(source, out, _placement(placement, norm_type, post_num))
        return ConvertedModel(out, f"{converted.config.placement}, {converted.num_parameters():,} parameters")
    if to not in _TARGETS:
        raise InputError(f"`to={to}` is not known. Valid: {', '.join(_TARGETS)}")
    if (placement, norm_type, post_num) != (None, None, None):
        raise InputError(
            "`placement`, `norm_type` and `post_num` are for an import. An export with `to` reads the placement from "
            "config.json: leave them out"
        )
    from mixln.exchange.export import save_stock

    export = save_stock(source, out, neutral_norms=to == "hf-neutral-norms")
    model, dtype = export.model, str(export.model.dtype).removeprefix("torch.")
    return ConvertedModel(
        out,
        f"{type(model).__name__}, {model.num_parameters():,} parameters; its logits differ by "
        f"{export.difference:.2g} at most, of up to {export.largest_logit:.3g} ({dtype})",
    )


def _placement(placement: str | None, norm_type: str | None, post_num: int | None) -> str:
    """Return the placement that the user states in one of two ways."""
    if placement is None and norm_type is None:
        raise InputError(
            "say what to do: `placement=PLACEMENT` (or the published code's `norm_type`) imports a checkpoint of the "
            "published training code, which was trained with that placement; `to=hf` exports a model of this library"
        )
    if placement is not None and norm_type is not None:
        raise InputError("state how the norms are placed once: either `placement`, or the published code's `norm_type`")
    if placement is None:
        from mixln.exchange.published import published_placement

        return published_placement(str(norm_type), post_num)
    if post_num is not None:
        raise InputError("`post_num` needs `norm_type`. With `placement`, write mix(post_layers=...)")
    return placement
