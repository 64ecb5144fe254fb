"""A policy trained against a reward, by TRL's RLOOTrainer.

For a prompt x with k sampled completions y_1 .. y_k, rewards r_i and the start's probabilities p_0,

    R_i = r_i - beta * sum_t (log p(y_it | x, y_i<t) - log p_0(y_it | x, y_i<t))
    A_i = R_i - 1/(k - 1) * sum_(j != i) R_j
    loss = - mean over completions of A_i * p(y_i | x) / p_old(y_i | x), whose gradient is that of A_i * log p(y_i | x)

(Ahmadian et al. 2024, arXiv 2402.14740). ReMax (Li et al. 2023, arXiv 2310.10505), which the Mix-LN paper's table 5
was made with, takes the reward of the greedy completion for the baseline instead.

What TRL would do otherwise is settled here: prompts have the tokens that fine-tuning gives them, dropout is off, a
reward that is no number is an error, prompts come in an order that is a function of (seed, step), and a checkpoint
counts once it is whole.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, set_seed

from mixln.data.order import permute
from mixln.device import default_device
from mixln.errors import InputError
from mixln.models.dtypes import OriginalDtypes
from mixln.models.encoding import require_embedded
from mixln.models.finite import require_finite_parameters
from mixln.models.foreign import naming_failures
from mixln.models.load import load_causal_lm
from mixln.models.sampling import Sampling, end_tokens, generation_settings
from mixln.quiet import quiet_transformers
from mixln.storage import write_file
from mixln.tasks.fine_tuning import lora_settings, require_peft
from mixln.tasks.policy_config import RLHFConfig
from mixln.tasks.reward_values import checked_rewards
from mixln.tasks.trl_runs import (
    CHECKPOINTS_FOLDER,
    SHARED_ARGUMENTS,
    describe_kept_checkpoint,
    quiet_trainer,
    require_trl,
    run_trainer,
)
from mixln.training import MODEL_FOLDER, TrainingDivergedError
from mixln.training.callbacks.metrics import METRICS_FILE
from mixln.training.run_folder import fill_folder

ScoreCompletions = Callable[[Sequence[int], Sequence[str]], Sequence[float]]
"""From the numbers of prompts (from 0), and a completion of each as text, to rewards."""

ReportPolicyStep = Callable[[int, float], None]
"""Called with the steps that are done, and the mean reward of the last."""


def train_policy(
    folder: str | Path,
    prompts: Sequence[Sequence[int]],
    score: ScoreCompletions,
    config: RLHFConfig,
    out: str | Path,
    report_step: ReportPolicyStep | None = None,
) -> None:
    """Train the model of a folder against a reward, and write it as a Hugging Face folder, `out/model`.

    The start, to which the KL divergence is taken, is the folder itself. A run that was interrupted goes on from its
    newest whole checkpoint, and ends with the same weights. Weights are float32 while they are trained, and saved in
    the precision that they came in.

    Args:
        folder: of a causal language model with its tokenizer.
        prompts: the tokens of each.
        score: gives the rewards.
        config: how.
        out: folder of the run.
        report_step: progress.

    Raises:
        InputError: the model cannot be trained, or a reward is no number.
        TrainingInterrupted: SIGINT or SIGTERM was received; a checkpoint is written first.
        TrainingDivergedError: the loss or a weight is no number any more.
    """
    require_policy_training(config)
    out = Path(out)
    model, tokenizer = load_causal_lm(str(folder))
    require_finite_parameters(model)
    require_embedded({token for prompt in prompts for token in prompt}, model, tokenizer)
    original, settings, dtypes = copy.deepcopy(model.config), model.generation_config, OriginalDtypes(model)
    nn.Module.float(model)
    _take_dropout_off(model)

    def report(logs: Mapping[str, Any], step: int) -> None:
        if report_step is not None:
            report_step(step, float(logs["reward"]))

    def write_metrics(state: TrainerState) -> None:
        steps = [entry for entry in state.log_history if "reward" in entry]
        write_file(out / METRICS_FILE, "".join(json.dumps(entry) + "\n" for entry in steps))

    with _naming_failures(model):
        trainer = run_trainer(
            lambda: _trainer(model, tokenizer, prompts, score, config, out), out, report, write_metrics
        )
    write_metrics(trainer.state)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    trained = trained.merge_and_unload() if config.low_rank is not None else trained
    trained.config, trained.generation_config = original, settings  # the trainer writes special tokens into them
    try:
        require_finite_parameters(trained)
    except InputError as error:
        raise TrainingDivergedError(f"{error}. Lower the learning rate") from error
    dtypes.restore(trained)
    _forget_trainer(trained)

    def fill(temporary: Path) -> None:
        with quiet_transformers():
            trained.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    fill_folder(out / MODEL_FOLDER, fill, "Make room, and run the same command again")
    shutil.rmtree(out / CHECKPOINTS_FOLDER, ignore_errors=True)


def require_policy_training(config: RLHFConfig) -> None:
    """Make sure that what training needs is installed, and that it can run here.

    Raises:
        InputError: it is not, or cannot.
    """
    require_trl("a policy")
    if config.low_rank is not None:
        require_peft()
    if default_device().type == "cuda" and torch.cuda.device_count() > 1:
        raise InputError(
            "TRL's RLOOTrainer trains on one GPU, and this process sees several. Choose one by CUDA_VISIBLE_DEVICES"
        )


def describe_kept_policy(out: Path) -> str:
    """Return in words what is kept of a run that has ended before its time."""
    if (out / MODEL_FOLDER).exists():
        return f"the trained policy is kept in {out}. Run the same command again to go on"
    return describe_kept_checkpoint(out)


def prompt_order(prompts: int, config: RLHFConfig) -> list[int]:
    """Return the numbers of the prompts (from 0) of all steps: each epoch is a permutation of its own.

    Args:
        prompts: how many there are.
        config: of the run.
    """
    wanted = config.num_steps(prompts) * config.prompts_per_step
    epochs = math.ceil(wanted / prompts)
    order = [permute(np.arange(prompts), prompts, config.seed, epoch) for epoch in range(epochs)]
    return np.concatenate(order)[:wanted].tolist()


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    score: ScoreCompletions,
    config: RLHFConfig,
    out: Path,
) -> Any:
    from datasets import Dataset
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    device = default_device()
    how = Sampling(config.max_new_tokens, config.temperature, config.top_p)
    ends = end_tokens(model, tokenizer)
    model.generation_config = generation_settings(model, tokenizer, how)
    order = prompt_order(len(prompts), config)
    steps = config.num_steps(len(prompts))
    micro = config.micro_batch_size or config.completions_per_step
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    names = {number: f"prompt {number}" for number in range(len(prompts))}

    def reward(
        prompts: Sequence[str], completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float | None]:
        numbers = [int(prompt.rpartition(" ")[2]) for prompt in prompts]
        raw = checked_rewards(
            score(numbers, completions), len(numbers), "the reward", lambda place: repr(completions[place])
        )
        clip = math.inf if config.reward_clip is None else config.reward_clip
        ended = [bool(ids) and ids[-1] in ends for ids in completion_ids]
        return [
            max(-clip, min(clip, value)) - (0.0 if end else config.missing_end_penalty)
            for value, end in zip(raw, ended, strict=True)
        ]

    set_seed(config.seed)
    arguments = RLOOConfig(
        output_dir=str(out / CHECKPOINTS_FOLDER),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.completions_per_step // micro,
        num_generations=config.completions_per_prompt,
        learning_rate=config.peak_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 10,  # whose first update is at rate 0: a run of a few steps must not consist of it
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=config.beta,
        num_iterations=1,
        normalize_advantages=False,
        mask_truncated_completions=False,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=0,
        repetition_penalty=1.0,
        max_completion_length=config.max_new_tokens,
        shuffle_dataset=False,  # the order is in the rows: TRL's own is another one after a resume
        remove_unused_columns=False,
        bf16=config.precision == "bfloat16" or (config.precision == "auto" and has_bfloat16),
        use_cpu=device.type == "cpu",
        seed=config.seed,
        save_steps=config.checkpoint_every or math.ceil(steps / 10),
        **SHARED_ARGUMENTS,
    )
    trainer = quiet_trainer(RLOOTrainer)(
        model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [names[number] for number in order]}),
        processing_class=_with_tokens(tokenizer, dict(zip(names.values(), prompts, strict=True)), model),
        peft_config=None if config.low_rank is None else lora_settings(config.low_rank, task_type="CAUSAL_LM"),
    )
    known = getattr(trainer, "eos_token_ids", [tokenizer.eos_token_id])
    if set(known) != set(ends):
        raise InputError(
            f"this model ends its answers by several tokens ({', '.join(map(str, ends))}), of which this version of "
            "TRL knows one alone: install a newer one (pip install -U trl)"
        )
    return trainer


def _with_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: dict[str, Sequence[int]], model: PreTrainedModel
) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that makes of each name of a prompt the prompt's own tokens.

    TRL calls the tokenizer on the text: special tokens that are spelled in it would count, and what the tokenizer puts
    behind a text would stand between prompt and completion.
    """
    kind = type(tokenizer)

    def call(self: Any, text: Sequence[str], **options: Any) -> Any:
        rows: Any = {"input_ids": [list(tokens[one]) for one in text]}
        if not options.get("padding"):
            return rows
        return self.pad(rows, padding=True, padding_side="left", return_tensors=options.get("return_tensors"))

    copied: Any = copy.deepcopy(tokenizer)
    copied.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    copied.pad_token = tokenizer.convert_ids_to_tokens(model.generation_config.pad_token_id)
    copied.deprecation_warnings = {"Asking-to-pad-a-fast-tokenizer": True}
    return copied


def _take_dropout_off(model: Any) -> None:
    """Keep the parts of a model in evaluation mode, whatever the trainer says; it reads the mode of the whole alone.

    TRL's `disable_dropout` does not reach dropout that is a number in an attention layer. With dropout on, completions
    are sampled, and both probabilities taken, each time from another model.
    """

    def train(mode: bool = True) -> nn.Module:
        nn.Module.train(model, False)
        model.training = mode
        return model

    model.train = train


def _forget_trainer(model: Any) -> None:
    """Take off what TRL and this module put on the model itself: other methods, and tags."""
    for name in ("forward", "train"):
        vars(model).pop(name, None)
    model.eval()
    if isinstance(getattr(model, "model_tags", None), list):
        model.model_tags = None


@contextmanager
def _naming_failures(model: PreTrainedModel) -> Iterator[None]:
    """Turn what TRL and the model raise into one line; this library's own errors pass."""
    diverged: TrainingDivergedError | None = None
    with naming_failures(f"a {type(model).__name__} cannot be trained by TRL's RLOOTrainer", "Give another model"):
        try:
            yield
        except TrainingDivergedError as error:
            diverged = error
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            diverged = TrainingDivergedError(
                "the policy gives probabilities that are no numbers: lower the learning rate"
            )
    if diverged is not None:
        raise diverged
