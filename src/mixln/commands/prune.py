"""`mixln prune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mixln.announce import announce
from mixln.chosen_device import on_device
from mixln.commands.arguments import PYTHON_ONLY
from mixln.commands.images import DEFAULT_TEXT, announce_images, require_no_images
from mixln.commands.start import announce_models, announce_opened, announce_text
from mixln.data.image_config import ImageDataConfig
from mixln.errors import InputError
from mixln.interruption import keeping
from mixln.signatures import checked_arguments
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.pruning_request import CRITERIA, HEALING_FILE, PruningRequest, parse_layers
from mixln.tasks.healing_config import HealingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor

    from mixln.studies.pruned_model import PrunedModel

_HEAL_ON_THE_SAME_TEXT = ""


@checked_arguments
@on_device
def prune(
    model: Annotated[str | Path | PreTrainedModel, {"as": str}],
    out: str | Path,
    *,
    tokenizer: Annotated[PreTrainedTokenizerBase | None, PYTHON_ONLY] = None,
    layers: Annotated[Sequence[int] | str | None, {"as": str}] = None,
    drop: int | None = None,
    by: Annotated[str | None, {"names": CRITERIA}] = None,
    any: bool = False,
    consecutive: bool = False,
    text: str | Path = DEFAULT_TEXT,
    images: str | Path | None = None,
    image_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_processor: Annotated[BaseImageProcessor | None, PYTHON_ONLY] = None,
    max_images: int = 1000,
    max_tokens: int = 8192,
    sequence_length: int = 512,
    batch_size: int = 8,
    stack: str | None = None,
    device: str | None = None,
    device_map: str | None = None,
    heal: Annotated[str | Path | bool | None, {"as": str, "metavar": "TEXT", "const": _HEAL_ON_THE_SAME_TEXT}] = None,
    text_field: str = "text",
    healing: HealingConfig | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> PrunedModel:
    """Remove layers from a model and write what is left as an ordinary Hugging Face folder. Layers are counted from 1,
    and both ends of a range are included; what will be removed is printed before anything is written. Either name the
    layers, or let the cheapest be chosen by a measure on text. The loss before and after is printed, and a warning if
    what is left is of little use as it is. With --heal the rest is trained on. Models of images are measured on images.

    Example:
        mixln prune runs/train/model runs/pruned --drop 2 --text books.jsonl.gz --heal

    Args:
        model: A Hugging Face folder, or a name on the hub.
        out: The folder to write. It must be new or empty.
        tokenizer: The tokenizer of a model in memory.
        layers: The layers to remove, such as 21-27 or 3,5,8-10, counted from 1. Both ends of a range are removed.
        drop: The number of layers to remove. They are chosen by --by.
        by: How layers are chosen: {names}. Default: removal, which is what the loss rises by without each layer.
        any: With --by angular, choose any layers instead of neighbours. The others choose any layers anyway.
        consecutive: With --by removal or influence, choose layers that are neighbours.
        text: The text to measure on, as in `mixln train`.
        images: The images to measure a model of images on, as in `mixln diagnose`.
        image_split: The split of the images to measure on. Default: test or validation, whichever there is.
        image_column: The column of images of a dataset. Default: the only one.
        label_column: The column of classes of a dataset. Default: the only one.
        image_processor: The image processor of a model in memory.
        max_images: Images to measure on.
        max_tokens: Tokens of the text to measure on.
        sequence_length: Tokens of a piece of text.
        batch_size: Pieces of text, or images, that are measured at once.
        stack: The name of the list of layers, where the model has several.
        device: Such as cpu, cuda or cuda:1. Default: the GPU, if any.
        device_map: With auto, share a large model out over devices.
        heal: Train what is left, on this text or on that of --text. The loss is reported before, after pruning and
            after healing. Run the same command again to go on after an interruption.
        text_field: The field or column of the text that holds a document.
        healing: How to heal. Default: `HealingConfig()`.
        cache: The folder for tokenised data. Default: ~/.cache/mixln.
        progress: Show on standard error how far it is.

    Returns:
        What is left, and what was removed; its table has one row.

    Raises:
        InputError: the request contradicts itself, the layers are not there, no folder can hold what is left, or `out`
            holds something.
        TrainingDivergedError: in healing, the loss is no number any more.
    """
    del device  # `on_device` has chosen it
    out, healing = Path(out), healing or HealingConfig()
    heal = _HEAL_ON_THE_SAME_TEXT if heal is True else None if heal is False else heal
    criterion = by or PruningRequest.by
    if (layers is None) == (drop is None):
        raise InputError("give either `layers` or `drop`")
    if layers is not None and by is not None:
        raise InputError("`by` needs `drop`: with `layers` you name the layers yourself")
    if criterion not in CRITERIA:
        raise InputError(f"`by={by}` is not known. Valid: {', '.join(CRITERIA)}")
    if layers is not None and (any or consecutive):
        raise InputError("`any` and `consecutive` need `drop`: with `layers` you name the layers yourself")
    if any and consecutive:
        raise InputError("`any` and `consecutive` contradict each other: give one of them")
    if drop is not None and drop < 1:
        raise InputError(f"`drop` must be at least 1, not {drop}")
    if heal is None and healing != HealingConfig():
        raise InputError("`healing` options need `heal`")
    if heal is not None and images is not None:
        raise InputError(
            "`heal` trains language models on text: leave it out with `images`, and train what is left further"
        )
    if images is None:
        require_no_images(
            image_processor=image_processor,
            image_split=image_split,
            image_column=image_column,
            label_column=label_column,
        )
    from mixln.storage import claim_folder, require_new_folder

    is_finished = heal is not None and (out / HEALING_FILE).is_file()
    if not is_finished:
        require_new_folder(out)
    announce_models(model)
    if images is None:
        announce_text(text)
    else:
        announce_images(images, None, text, tokenizer)
    if heal:
        announce_text(str(heal), "data")
    announce(("folder", out))
    from mixln.studies.companion import IMAGE_PROCESSOR, TOKENIZER
    from mixln.studies.model_folder import source_of

    claim_folder(out.absolute().parent)
    given = (tokenizer, out, TOKENIZER) if images is None else (image_processor, out, IMAGE_PROCESSOR)
    with source_of(model, *given) as source:
        request = PruningRequest(
            source=source.path,
            name=source.name,
            layers=None if layers is None else tuple(parse_layers(layers) if isinstance(layers, str) else layers),
            drop=drop or 0,
            by=criterion,
            consecutive=not any if criterion == "angular" else consecutive,
            text=str(text),
            text_field=text_field,
            images=None if images is None else ImageDataConfig(str(images), image_column, label_column, image_split),
            measurement=DiagnosisConfig(
                sequence_length=sequence_length, batch_size=batch_size, max_tokens=max_tokens, max_images=max_images
            ),
            stack=stack,
        )
        if heal is None:
            with keeping(lambda: "nothing was written"):
                return _prune(request, out, device_map, shown=progress)
        if is_finished:
            return _healed_before(request, healing, str(heal or text), out)
        return _prune_and_heal(request, healing, str(heal or text), out, cache, device_map, shown=progress)


def _prune(request: PruningRequest, out: Path, device_map: str | None, *, shown: bool) -> PrunedModel:
    from mixln.device import default_device
    from mixln.models.inputs import require_input
    from mixln.progress import StageProgress
    from mixln.studies.prune import describe_layers, find_prunable_stack, measure_cost, select_layers
    from mixln.studies.pruned_folder import open_for_pruning, prune_model
    from mixln.studies.pruned_model import PrunedModel

    whole = open_for_pruning(request.source, device=default_device(), device_map=device_map)
    announce_opened(whole)
    if request.images is not None:
        require_input(whole, "images")
    stack = find_prunable_stack(whole, request.stack)
    with StageProgress(shown=shown) as progress:
        progress.start(request.name)
        indices = select_layers(request, whole, stack, progress.report, progress.step)
        progress.report(describe_layers(indices, stack))
        cost = measure_cost(request, whole, stack, indices, progress.report, progress.step)
        record = prune_model(request, stack, indices, out, cost)
    return PrunedModel(out, record)


def _prune_and_heal(
    request: PruningRequest,
    config: HealingConfig,
    corpus: str,
    out: Path,
    cache: str | Path | None,
    device_map: str | None,
    *,
    shown: bool,
) -> PrunedModel:
    from mixln.progress import StageProgress, TrainingProgress
    from mixln.studies.prune_and_heal import PruneAndHeal, healing_folder
    from mixln.studies.pruned_model import PrunedModel

    work = PruneAndHeal(request, config, corpus, out)
    with keeping(work.describe_kept), work:
        with StageProgress(shown=shown) as progress:
            progress.start(request.name)
            work.prepare(cache, progress.report, progress.step)
            work.prune(progress.report, progress.step, device_map=device_map)
        with TrainingProgress(work.recipe.steps, shown=shown) as training:
            training.start_run(0, "healing")
            report = work.heal(training.step)
    return PrunedModel(out, work.record, report, healing_folder(out))


def _healed_before(request: PruningRequest, config: HealingConfig, corpus: str, out: Path) -> PrunedModel:
    """Return what an earlier call of the same request has finished."""
    from mixln.studies.prune_and_heal import finished_healing, healing_folder
    from mixln.studies.pruned_model import PrunedModel
    from mixln.training import read_metrics

    record, report = finished_healing(request, config, corpus, out)
    work = healing_folder(out)
    steps = [line["step"] for line in read_metrics(work)]
    announce(("finished", f"already{f', at step {steps[-1]}' if steps else ''}; nothing to do"))
    return PrunedModel(out, record, report, work)
