"""`mixln finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

from mixln.announce import announce
from mixln.chosen_device import on_device
from mixln.commands.arguments import claim_output
from mixln.commands.fields import FineTuningFields
from mixln.commands.settings import changed
from mixln.commands.start import announce_models
from mixln.interruption import keeping
from mixln.signatures import checked_arguments
from mixln.tasks.fine_tuning_config import FineTuningConfig

if TYPE_CHECKING:
    from mixln.studies.fine_tuned_model import FineTunedModel


@checked_arguments
@on_device
def finetune(
    model: str | Path,
    data: Annotated[str | Path | Sequence[str | Path], {"as": Sequence[str]}],
    *,
    validation_data: Annotated[Sequence[str] | None, {"metavar": "DATA"}] = None,
    weights: Sequence[float] | None = None,
    template: Annotated[str | Path | None, {"metavar": "TEMPLATE"}] = None,
    out: str | Path = "runs/finetune",
    config: FineTuningConfig | None = None,
    device: str | None = None,
    progress: bool = False,
    **changes: Unpack[FineTuningFields],
) -> FineTunedModel:
    """Fine-tune a language model on examples of prompts and answers. Only answers are learned, examples are packed into
    rows without being cut, and none sees another. An interrupted run goes on when the same command is run again.

    Example:
        mixln finetune runs/train/model chats.jsonl.gz --epochs 3 --learning-rate 1e-4 --out runs/tuned

    Args:
        model: A Hugging Face folder, or a name on the hub.
        data: Files of JSON lines, folders of them, or hf:NAME. A row has messages, or prompt and completion, or
            instruction, input and output, or the fields of --template.
        validation_data: Examples that are held out. Default: a part of the data.
        weights: How often an epoch goes through each of the data, such as 1 0.5. Default: once.
        template: A YAML file with a prompt and an answer, each a jinja2 template of the fields of a row, or one that
            ships: instruction, completion. Default: by the fields.
        out: The folder of the run. The model is in its folder `model`.
        config: How to fine-tune. Default: `FineTuningConfig()`.
        device: The device: cpu, cuda or cuda:1. Default: the GPU if there is one.
        progress: Show on standard error how far it is.
        **changes: Fields of `config` that differ, such as `epochs=3`, `method="lora"`, `learning_rate`.

    Returns:
        The fine-tuned model, what became of the examples, and the loss of held-out answers before and after.

    Raises:
        InputError: the model or the examples cannot be used, an example does not fit into a row, or the folder holds
            another run.
        TrainingDivergedError: the loss is no number any more.
    """
    del device  # `on_device` has chosen it
    sources = [str(data)] if isinstance(data, str | Path) else [str(source) for source in data]
    config, out = changed(config or FineTuningConfig(), changes), Path(out)
    announce_models(model)
    announce(("data", ", ".join(sources)), ("folder", out))
    claim_output(out)
    from mixln.progress import TrainingProgress
    from mixln.studies.fine_tuned_model import example_request, plan_fine_tuning, run_fine_tuning
    from mixln.training.saved_checkpoint import describe_kept

    request = example_request(sources, config, validation_data, weights, template)
    plan = plan_fine_tuning(str(model), request, config)
    with keeping(lambda: describe_kept(out)), TrainingProgress(plan.recipe.steps, shown=progress) as shown:
        shown.start_run(0, "fine-tuning")
        return run_fine_tuning(plan, out, shown.step)
