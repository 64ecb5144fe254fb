"""`mixln prune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mixln.errors import InputError
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.pruning_request import CRITERIA, PruningRequest, parse_layers
from mixln.tasks.healing_config import HealingConfig

if TYPE_CHECKING:
    from mixln.studies.prune_and_heal import HealingReport

_HEAL_ON_THE_SAME_TEXT = ""


def prune(
    model: str,
    out: Path,
    *,
    layers: str | None = None,
    drop: int | None = None,
    by: Annotated[str | None, {"names": CRITERIA}] = None,
    any: bool = False,
    consecutive: bool = False,
    text: str = "python",
    max_tokens: int = 8192,
    window: int = 512,
    batch_size: int = 8,
    stack: str | None = None,
    device_map: str | None = None,
    heal: Annotated[str | None, {"nargs": "?", "metavar": "CORPUS", "const": _HEAL_ON_THE_SAME_TEXT}] = None,
    text_field: str = "text",
    healing: HealingConfig,
    cache: Path | None = None,
) -> None:
    """Remove layers from a model and write what is left as an ordinary Hugging Face folder. Layers are counted from 1,
    and both ends of a range are included; what will be removed is printed before anything is written. Either name the
    layers, or let the cheapest be chosen by a measure on text. With --heal the rest is trained on.

    Example:
        mixln prune runs/train/model runs/pruned --drop 2 --by removal --text books.jsonl.gz --heal

    Args:
        model: Hugging Face folder, or name on the hub.
        out: folder to write; it must be new or empty.
        layers: what to remove, such as 21-27 or 3,5,8-10; counted from 1, inclusive.
        drop: remove so many layers, chosen by --by.
        by: {names}; default: angular.
        any: with --by angular: any layers, not a run (removal and influence choose any anyway).
        consecutive: with --by removal or influence: a run of consecutive layers.
        text: what to measure on; default: the standard library's text.
        max_tokens: of text to measure on; default: 8192.
        window: tokens of a piece of text; default: 512.
        batch_size: pieces measured at once; default: 8.
        stack: name of the list of layers, where it cannot be told.
        device_map: share a large model out over devices (auto).
        heal: train what is left on this text, as `mixln train` takes it (default: that of --text), and report the loss
            before, after pruning and after healing. Run the same command again to go on after an interruption.
        text_field: field or column of the text that holds a document.
        cache: folder for tokenised data; default: ~/.cache/mixln.
    """
    criterion = by or "angular"
    if (layers is None) == (drop is None):
        raise InputError("give either `layers` or `drop`")
    if layers is not None and by is not None:
        raise InputError("`by` goes with `drop`: `layers` names the layers itself")
    if criterion not in CRITERIA:
        raise InputError(f"there is no `by={by}`. There are: {', '.join(CRITERIA)}")
    if layers is not None and (any or consecutive):
        raise InputError("`any` and `consecutive` go with `drop`: `layers` names the layers itself")
    if any and consecutive:
        raise InputError("`any` and `consecutive` exclude each other")
    if drop is not None and drop < 1:
        raise InputError("`drop`: no layer to remove. Name one at least")
    if heal is None and healing != HealingConfig():
        raise InputError("`healing` options go with `heal`")
    from mixln.storage import require_new_folder

    request = PruningRequest(
        source=model,
        layers=None if layers is None else tuple(parse_layers(layers)),
        drop=drop or 0,
        by=criterion,
        consecutive=not any if criterion == "angular" else consecutive,
        text=text,
        text_field=text_field,
        measurement=DiagnosisConfig(window=window, batch_size=batch_size, max_tokens=max_tokens),
        stack=stack,
    )
    require_new_folder(out)
    if heal is None:
        _prune(request, out, device_map)
    else:
        _prune_and_heal(request, healing, heal or text, out, cache, device_map)


def _prune(request: PruningRequest, out: Path, device_map: str | None) -> None:
    from mixln.device import default_device
    from mixln.progress import StageProgress
    from mixln.storage import claim_folder
    from mixln.studies.prune import describe_layers, find_prunable_stack, select_layers
    from mixln.studies.pruned_folder import open_for_pruning, prune_model

    claim_folder(out.absolute().parent)
    model = open_for_pruning(request.source, device=default_device(), device_map=device_map)
    stack = find_prunable_stack(model, request.stack)
    with StageProgress() as progress:
        progress.start(request.source)
        indices = select_layers(request, model, stack, progress.report, progress.step)
    print(describe_layers(indices, stack), flush=True)
    num_layers = len(stack.layers)
    left_out = prune_model(request, stack, indices, out)
    if left_out:
        print(f"left out, as it is of the whole model: {', '.join(left_out)}")
    print(f"{num_layers - len(indices)} layers left: {out}")


def _prune_and_heal(
    request: PruningRequest,
    config: HealingConfig,
    corpus: str,
    out: Path,
    cache: Path | None,
    device_map: str | None,
) -> None:
    from mixln.progress import StageProgress, TrainingProgress
    from mixln.studies.prune_and_heal import PruneAndHeal, healing_folder

    with PruneAndHeal(request, config, corpus, out) as work:
        with StageProgress() as progress:
            progress.start(request.source)
            work.prepare(cache, progress.report)
            work.prune(progress.report, progress.step, device_map=device_map)
        with TrainingProgress(work.recipe.steps) as training:
            training.start_run(0, "healing")
            report = work.heal(training.step)
    print(_result(report))
    print(f"{out}; metrics and the model before healing: {healing_folder(out)}")


def _result(report: HealingReport) -> str:
    healed = report.loss_healed
    assert healed is not None
    recovered = "" if report.recovered is None else f" ({report.recovered:.0%} of what pruning cost is recovered)"
    return (
        f"validation loss {report.loss_before:.4f} before, {report.loss_pruned:.4f} after pruning, {healed:.4f} after "
        f"healing on {report.train_tokens:,} tokens{recovered}"
    )
