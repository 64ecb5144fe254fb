"""`mixln rlhf`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

from mixln.announce import announce
from mixln.chosen_device import on_device
from mixln.commands.arguments import claim_output
from mixln.commands.fields import RLHFFields
from mixln.commands.settings import changed
from mixln.commands.start import announce_models
from mixln.interruption import keeping
from mixln.signatures import checked_arguments
from mixln.tasks.policy_config import RLHFConfig

if TYPE_CHECKING:
    from mixln.studies.policies import TrainedPolicies


@checked_arguments
@on_device
def rlhf(
    models: Annotated[str | Path | Sequence[str | Path], {"as": Sequence[str]}],
    prompts: Annotated[str | Path | Sequence[str | Path], {"as": str, "metavar": "PROMPTS"}],
    *,
    reward: Annotated[str | Path | Sequence[str | Path], {"as": Sequence[str], "metavar": "REWARD"}],
    judge: Annotated[str | Path | None, {"as": str, "metavar": "REWARD"}] = None,
    validation_prompts: Annotated[Sequence[str] | None, {"metavar": "PROMPTS"}] = None,
    template: Annotated[str | Path | None, {"metavar": "TEMPLATE"}] = None,
    names: Sequence[str] | None = None,
    force: bool = False,
    out: str | Path = "runs/rlhf",
    config: RLHFConfig | None = None,
    device: str | None = None,
    command_line: str = "",
    progress: bool = False,
    **changes: Unpack[RLHFFields],
) -> TrainedPolicies:
    """Train policies against a reward by RLOO, and compare each with its start under one judge on held-out prompts.
    An interrupted run goes on when the same command is run again. This needs mixln[reward].

    Example:
        mixln rlhf runs/pre/model runs/mix/model prompts.jsonl --reward runs/reward --out runs/rlhf

    Args:
        models: Hugging Face folders, or names on the hub. Each is the start of a policy, to which KL is taken.
        prompts: A file of JSON lines, a folder of them, or hf:NAME. A row has a prompt, or messages, or instruction and
            input, or the fields of --template. Rows of preferences will do. In Python one or several.
        reward: A run of `mixln reward`, a folder with a head of one label, or python:FILE:FUNCTION, a function of
            (prompts, completions) that returns numbers. One for all models, or one for each.
        judge: The one reward that all policies are compared by. Default: the reward, if there is one for all.
        validation_prompts: Prompts that are held out. Default: a part of the prompts.
        template: A YAML file with a prompt and an answer, each a jinja2 template of the fields of a row, or one that
            ships: instruction, completion. Default: by the fields.
        names: Names of the policies in the report, one for each.
        force: Use a reward also if it cannot be told from chance.
        out: The folder of the run. The model is in its folder `model`. Several models have a folder each.
        config: How to train and to judge. Default: `RLHFConfig()`.
        device: The device: cpu, cuda or cuda:1. Default: the GPU if there is one.
        command_line: How it was asked for, for the report.
        progress: Show on standard error how far it is.
        **changes: Fields of `config` that differ, such as `steps=200`, `beta=0.1`, `learning_rate`.

    Returns:
        The policies, and their rewards under the judge before and after. Its table has a row for each.

    Raises:
        InputError: a model, prompts or a reward cannot be used, a reward is no number, or a folder holds another run.
        TrainingDivergedError: the loss is no number any more.
    """
    del device  # `on_device` has chosen it
    config, out = changed(config or RLHFConfig(), changes), Path(out)
    starts, sources, rewards = _listed(models), _listed(prompts), _listed(reward)
    announce_models(starts)
    announce(("prompts", ", ".join(sources)), ("reward", ", ".join(rewards)), ("judge", judge), ("folder", out))
    claim_output(out)
    from mixln.data.prompt_rows import PromptRequest
    from mixln.data.prompts import load_template
    from mixln.progress import StageProgress
    from mixln.studies.policies import describe_kept_policies, plan_policies, run_policies

    request = PromptRequest(
        sources=sources,
        validation_sources=validation_prompts or (),
        validation_fraction=config.validation_fraction,
        max_validation_prompts=config.max_validation_prompts,
        template=None if template is None else load_template(str(template)),
    )
    plan = plan_policies(
        starts, request, rewards, None if judge is None else str(judge), config, out, names=names, force=force
    )
    shown_names = [one.name for one in plan.contestants]
    with keeping(lambda: describe_kept_policies(out, shown_names)), StageProgress(shown=progress) as shown:
        return run_policies(plan, command=command_line, report=shown.step)


def _listed(given: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(given)] if isinstance(given, str | Path) else [str(one) for one in given]
