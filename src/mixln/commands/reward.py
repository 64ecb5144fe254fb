"""`mixln reward`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

from mixln.announce import announce
from mixln.chosen_device import on_device
from mixln.commands.arguments import claim_output
from mixln.commands.fields import RewardFields
from mixln.commands.settings import changed
from mixln.commands.start import announce_models
from mixln.errors import InputError
from mixln.interruption import keeping
from mixln.signatures import checked_arguments
from mixln.tasks.reward_config import RewardConfig

if TYPE_CHECKING:
    from mixln.studies.reward_model import TrainedRewardModel


@checked_arguments
@on_device
def reward(
    model: str | Path,
    preferences: Annotated[str | Path | Sequence[str | Path], {"as": Sequence[str]}],
    *,
    validation_data: Annotated[Sequence[str] | None, {"metavar": "PREFERENCES"}] = None,
    template: Annotated[str | Path | None, {"metavar": "TEMPLATE"}] = None,
    out: str | Path = "runs/reward",
    config: RewardConfig | None = None,
    device: str | None = None,
    progress: bool = False,
    **changes: Unpack[RewardFields],
) -> TrainedRewardModel:
    """Train a reward model on pairs of answers of which one was preferred, and say what its accuracy on held-out
    prompts is worth. An interrupted run goes on when the same command is run again. This needs mixln[reward].

    Example:
        mixln reward runs/tuned/model qa_feedback.jsonl.gz --epochs 1 --learning-rate 1e-4 --out runs/reward

    Args:
        model: A language model, which gets a new head, or a reward model. A Hugging Face folder, or a name on the hub.
        preferences: Files of JSON lines, folders of them, or hf:NAME. A row has prompt, chosen and rejected, or chosen
            and rejected dialogues.
        validation_data: Pairs that are held out. Default: all pairs of a part of the prompts.
        template: How prompt and answer become one text. It is chat, by the tokenizer's chat template, completion, as
            they are, instruction, or a YAML file with a prompt and an answer. Default: completion if white space stands
            between them, else chat.
        out: The folder of the run. The model is in its folder `model`.
        config: How to train. Default: `RewardConfig()`.
        device: The device: cpu, cuda or cuda:1. Default: the GPU if there is one.
        progress: Show on standard error how far it is.
        **changes: Fields of `config` that differ, such as `epochs=2`, `learning_rate`.

    Returns:
        The reward model, its accuracy on held-out prompts with an interval and a verdict, and how much of it is length.

    Raises:
        InputError: the model or the pairs cannot be used, pairs have empty or equal answers, all have one prompt, or
            the folder holds another run.
        TrainingDivergedError: the loss is no number any more.
    """
    del device  # `on_device` has chosen it
    sources = [str(preferences)] if isinstance(preferences, str | Path) else [str(source) for source in preferences]
    if not sources:
        raise InputError("`preferences` is empty: give at least one file")
    config, out = changed(config or RewardConfig(), changes), Path(out)
    announce_models(model)
    announce(("data", ", ".join(sources)), ("folder", out))
    claim_output(out)
    from mixln.data.preferences import CHAT, PreferenceRequest
    from mixln.data.prompts import load_template
    from mixln.progress import TrainingProgress
    from mixln.studies.reward_model import describe_kept, plan_reward_model, run_reward_model

    form = None if template is None else CHAT if str(template) == CHAT else load_template(str(template))
    request = PreferenceRequest(
        sources=sources,
        validation_sources=validation_data or (),
        validation_fraction=config.validation_fraction,
        form=form,
        too_long=config.too_long,
        unusable=config.unusable,
    )
    with keeping(lambda: describe_kept(out)):
        plan = plan_reward_model(str(model), request, config)
        with TrainingProgress(config.steps(len(plan.data.train)), shown=progress) as shown:
            shown.start_run(0, "reward model")
            return run_reward_model(plan, out, shown.step, shown.stage)
