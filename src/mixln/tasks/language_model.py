"""What all tasks share that train a causal language model on packed rows of text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from mixln.data import Batch, TrainingData, training_rows
from mixln.errors import InputError
from mixln.measure.forward import batch_logits
from mixln.models.encoding import IGNORED_TARGET
from mixln.quiet import quiet_transformers
from mixln.tasks.layers import layer_activations, parameters_by_layer
from mixln.tasks.objective import CausalLanguageModelObjective
from mixln.tasks.recipe import TextTrainingConfig
from mixln.tasks.validation import ValidationLoss, validate
from mixln.training.objective import Batch as Arguments
from mixln.training.objective import Reduce, Share
from mixln.training.task import Task

HUGGINGFACE_FOLDER = "huggingface"
"""Of a checkpoint: config and tokenizer or image processor."""

_WIDTH_OF_PARTS = 1024


def feed_forward_widths(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the width of the residual stream and that of a feed-forward's inner layer, or four times the first.

    Of a model in parts, whose config has no width of its own: `_WIDTH_OF_PARTS`.
    """
    text = config.get_text_config()
    hidden = int(getattr(text, "hidden_size", None) or _WIDTH_OF_PARTS)
    inner = getattr(text, "intermediate_size", None)
    return hidden, inner if isinstance(inner, int) else 4 * hidden


class LanguageModelTask(Task):
    """A task whose batches are packed rows of tokens, and whose models are transformers'.

    Args:
        config: of the run.
        data: to train and validate on.
    """

    unit = "tokens"

    def __init__(self, config: TextTrainingConfig, data: TrainingData) -> None:
        self.config = config
        self.data_config = config.data
        self.data = data
        self.positions = config.data.sequence_length

    def identity(self) -> dict[str, Any]:
        """The data, by their settings and by what is in them."""
        return {"data": asdict(self.data_config), "data_fingerprint": self.data.fingerprint}

    def batch(self, step: int, share: Share) -> Arguments:
        """Return rows of the training data."""
        return as_arguments(self.data.train.batch(share.of(self.rows(step))))

    def weight(self, batch: Arguments) -> int:
        """Return the number of predicted tokens."""
        return int((batch["targets"] != IGNORED_TARGET).sum())

    def rows(self, step: int) -> Any:
        """Return the rows of the training data that make up a batch."""
        return training_rows(len(self.data.train), step, self.config.batch_size, self.config.seed)

    def evaluate(
        self, objective: CausalLanguageModelObjective, device: torch.device, share: Share, reduce: Reduce
    ) -> ValidationLoss:
        """Return the validation loss."""
        return validate(objective, self.data.validation, device, self.config.evaluation_batch_size, share, reduce)

    def forward(self, objective: CausalLanguageModelObjective, batch: Arguments) -> None:
        """Run the whole model, its head included, which the objective does not call."""
        batch_logits(objective.model, Batch(**batch))

    def layers(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters by depth."""
        return parameters_by_layer(model)

    def activations(
        self, objective: CausalLanguageModelObjective, batch: Arguments, autocast_dtype: torch.dtype | None
    ) -> dict[str, Tensor]:
        """Measure the residual stream."""
        return layer_activations(objective.model, Batch(**batch), autocast_dtype)

    def describe(self, model: PreTrainedModel, folder: Path) -> None:
        """Write config and tokenizer, so that a checkpoint can be exported alone."""
        model.config.save_pretrained(folder / HUGGINGFACE_FOLDER)
        self.data.tokenizer.save_pretrained(folder / HUGGINGFACE_FOLDER)

    def finish(self, objective: CausalLanguageModelObjective) -> dict[str, Any] | None:
        """Go back to the attention that a loaded model has."""
        objective.use_attention("sdpa")

    def save(self, model: PreTrainedModel, weights: dict[str, Any], folder: Path) -> None:
        """Write a Hugging Face folder with the tokenizer."""
        with quiet_transformers():
            model.save_pretrained(folder, state_dict=weights)
        self.data.tokenizer.save_pretrained(folder)

    def load(self, folder: Path, device: torch.device) -> PreTrainedModel:
        """Open a Hugging Face folder."""
        try:
            # attention as transformers chooses it: an architecture may have no sdpa
            with quiet_transformers():
                model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"the finished model {folder} is damaged ({error}). Delete it to train it anew") from error
        nn.Module.to(model, device)
        return model.eval()


def as_arguments(batch: Batch) -> Arguments:
    """Return a batch of tokens as the arguments of an objective."""
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "targets": batch.targets}
