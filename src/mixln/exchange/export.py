"""Exact export to transformers' own classes, which know nothing of placements.

plan of the model -> fold what weights can take up -> a layout whose classes execute the rest, or an error saying what
none of them does.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel

from mixln.errors import InputError
from mixln.exchange.convert import copy_companions
from mixln.exchange.fold import Folded, fold, names_of_role
from mixln.exchange.layouts import LayoutError, StockLayout, layouts_for
from mixln.exchange.neutral_norms import neutral_layout
from mixln.models.companions import model_folder
from mixln.models.decoder import PlacedForCausalLM
from mixln.models.graft import has_adapters
from mixln.models.load import load_bare_causal_lm, load_config, load_tokenizer, load_whole_model
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.registry import architecture_of
from mixln.models.stack import PlacedWithHead
from mixln.placement import Placement, StackPlan
from mixln.placement.departures import departures
from mixln.quiet import quiet_transformers
from mixln.storage import disk_errors, require_new_folder, whole_folder

TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest logit, that an export of float32 weights may have."""


def stock_model(model: PlacedPreTrainedModel, *, neutral_norms: bool = False) -> PreTrainedModel:
    """Return a new model of a class of transformers that computes the same function; the given one stays as it is.

    Weights that take up a part of the placement are computed in float64 and rounded to their dtype; so logits agree up
    to rounding, which in bfloat16 is coarse. With a head or without, as the given one.

    Args:
        model: of this library, in any float dtype.
        neutral_norms: for a model without norms: into its architecture's own class, whose norms are made the identity
            (see `mixln.exchange.neutral_norms`), up to a part of var(x) / 2^41.

    Returns:
        The new model, in the given one's mode and on its device.

    Raises:
        InputError: it is no model of this library, or has the head of a classifier; or no class of transformers
            computes its function, and the message says which part has no equivalent.
    """
    if not isinstance(model, PlacedPreTrainedModel):
        raise InputError(f"{type(model).__name__} is not a model of this library, so it has no placement to export")
    config = model.config
    assert isinstance(config, PlacedConfig)
    if not _has_exported_head(model):
        raise InputError(f"the head of a {type(model).__name__} cannot be exported: export its stack, model.base_model")
    if has_adapters(model):
        raise InputError("the model has adapters, which no stock class has: merge them first (merge_and_unload)")
    folded = fold(model)
    reasons: list[str] = []
    layouts = [neutral_layout(config)] if neutral_norms else list(layouts_for(config))
    for layout in layouts:
        if not layout.has_placement_of(folded):
            continue
        candidate = Folded(folded.plan, dict(folded.weights), folded.tied)
        stock_class = layout.model_class(type(model))
        try:
            return _build(stock_class, layout, model, candidate)
        except (LayoutError, StrictDataclassError) as error:
            has = "with neutral norms" if neutral_norms else "has this placement"
            reasons.append(f"{stock_class.__name__} {has}, but {error.__cause__ or error}")
    raise InputError(_refusal(model, folded.plan, layouts[0], reasons, neutral_norms=neutral_norms))


def _has_exported_head(model: PlacedPreTrainedModel) -> bool:
    """Whether a model has no head, or one that its architecture is made for."""
    found = architecture_of(model.config)
    is_of_language = found is None or found.is_causal
    return not isinstance(model, PlacedWithHead) or not is_of_language or isinstance(model, PlacedForCausalLM)


def _build(
    stock_class: type[PreTrainedModel], layout: StockLayout, model: PlacedPreTrainedModel, folded: Folded
) -> PreTrainedModel:
    config: Any = layout.build(model.config, folded)
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    weights = {name: tensor.clone() if tensor.data_ptr() in own else tensor for name, tensor in folded.weights.items()}
    if getattr(config, "tie_word_embeddings", False):
        weights = {name: tensor for name, tensor in weights.items() if name not in names_of_role(model, "head")}
    loaded: Any = stock_class.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=model.dtype,
        output_loading_info=True,
        **model.options_like(model),
    )
    stock, info = loaded
    if info["missing_keys"] or info["unexpected_keys"]:
        raise LayoutError(f"it has other parameters ({info['missing_keys']}, {info['unexpected_keys']})")
    stock.config.name_or_path = ""  # it was loaded from nowhere
    if stock.can_generate():
        stock.generation_config = copy.deepcopy(model.generation_config)
    return stock.to(model.device).train(model.training)


@dataclass(frozen=True)
class StockExport:
    """An export that was written.

    Attributes:
        model: as it was opened again from what was written.
        difference: largest difference of its logits from those of the given model.
        largest_logit: of the given model, by absolute value.
    """

    model: PreTrainedModel
    difference: float
    largest_logit: float


def save_stock(source: str | Path, out: str | Path, *, neutral_norms: bool = False) -> StockExport:
    """Export a checkpoint of this library and write it to `out`, whole or not at all.

    The tokenizer comes along, or the preparation of images. What was written is opened again and compared with the
    given model on random tokens or pixels.

    Args:
        source: folder, or name on the hub.
        out: folder to write.
        neutral_norms: as in `stock_model`.

    Returns:
        The model as it was opened again, and by how much its logits differ.

    Raises:
        InputError: as `stock_model`; or there is no such checkpoint, or `out` holds something already or cannot be
            written, or the logits differ by more than `TOLERANCE` (not asked of dtypes with less precision than
            float32).
    """
    out = Path(out)
    require_new_folder(out)
    model = _load(str(source))
    if not isinstance(model, PlacedPreTrainedModel):
        raise InputError(
            f"{source} holds a {type(model).__name__}, which is a class of transformers already. If the published "
            "training code wrote it, its config.json hides the placement: import it first, with `placement`"
        )
    stock = stock_model(model, neutral_norms=neutral_norms)
    saving = disk_errors(f"{out} could not be written", "Make room, or choose another place")
    with saving, quiet_transformers(), whole_folder(out) as temporary:
        stock.save_pretrained(temporary)
        is_of_language = isinstance(model, PlacedForCausalLM)
        if Path(source).is_dir() or not is_of_language:
            copy_companions(model_folder(str(source)), temporary)
        else:
            load_tokenizer(str(source)).save_pretrained(temporary)
        stock_class = type(stock)
        del stock
        written = stock_class.from_pretrained(temporary).eval()
        difference, largest = compare_logits(model, written)
        if torch.finfo(model.dtype).eps <= torch.finfo(torch.float32).eps and difference > TOLERANCE * largest:
            raise InputError(
                f"the export of {source} to {type(written).__name__} differs by {difference:.2g} in logits of up "
                f"to {largest:.3g}, so nothing was written. {_WAYS.format(model_type=model.config.model_type)}"
            )
    return StockExport(written, difference, largest)


def _load(source: str) -> PreTrainedModel:
    """Open a language model, or a model of this library that is none."""
    found = architecture_of(load_config(source))
    return load_bare_causal_lm(source) if found is None or found.is_causal else load_whole_model(source)


def compare_logits(model: PreTrainedModel, other: PreTrainedModel) -> tuple[float, float]:
    """Return the largest difference of two models' logits on random tokens or pixels, and the first's largest."""
    given = random_tokens(model) if model.can_generate() else random_pixels(model)
    first, second = precise_logits(model, given), precise_logits(other, given)
    return (first - second).abs().max().item(), first.abs().max().item()


def random_tokens(model: PreTrainedModel) -> Tensor:
    """Return two rows of random tokens that a model takes, (2, sequence), always the same ones."""
    config: Any = model.config
    length = min(64, config.max_position_embeddings)
    return torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


def random_pixels(model: PreTrainedModel) -> Tensor:
    """Return two random images that a model takes, (2, channels, height, width), always the same ones."""
    config: Any = model.config
    size = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size,) * 2
    return torch.randn(2, config.num_channels, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def precise_logits(model: PreTrainedModel, given: Tensor) -> Tensor:
    """Return the logits of a model for some tokens or images, in float64."""
    options = {"use_cache": False} if model.can_generate() else {}
    return model(**{model.main_input_name: given.to(model.device)}, **options).logits.double()


_WAYS = (
    "Keep the checkpoint as it is, of model_type {model_type}, and open it after `import mixln`; or write it with "
    "mixln.exchange.save_self_contained(model, folder), which opens without mixln, with trust_remote_code=True"
)


_NEUTRAL_WAY = (
    ". As it has no norms, it also goes into its architecture's own class, with norms that do nothing: mixln convert "
    "with `to=hf-neutral-norms`, or stock_model(model, neutral_norms=True)"
)


def _refusal(
    model: PlacedPreTrainedModel, plan: StackPlan, layout: StockLayout, reasons: list[str], *, neutral_norms: bool
) -> str:
    config: Any = model.config
    name = layout.model_class(type(model)).__name__
    found = departures(plan, Placement.parse(layout.placement).plan(len(plan.blocks)))
    target = f"{name} with neutral norms ({layout.placement})" if neutral_norms else name
    parts = f" Weights cannot express how it departs from {target}: {'; '.join(found)}." if found else ""
    return (
        f"no class of transformers computes placement {config.placement!r}.{parts} "
        f"{''.join(f'{reason}. ' for reason in reasons)}{_WAYS.format(model_type=config.model_type)}"
        f"{'' if neutral_norms or plan.norms or not model.can_generate() else _NEUTRAL_WAY}"
    )
