"""Training a trained language model of any architecture further."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mixln.data import TrainingData
from mixln.errors import InputError
from mixln.measure.texts import longest_window
from mixln.models.dtypes import OriginalDtypes
from mixln.models.encoding import require_embedded
from mixln.models.finite import require_finite_parameters
from mixln.models.load import load_causal_lm, load_config
from mixln.tasks.choice import choose_objective
from mixln.tasks.healing_config import LowRankConfig
from mixln.tasks.language_model import LanguageModelTask, feed_forward_widths
from mixln.tasks.objective import CausalLanguageModelObjective, choose_attention
from mixln.tasks.objectives import SingleDocumentsObjective
from mixln.tasks.recipe import TextTrainingConfig

if TYPE_CHECKING:
    from peft import LoraConfig


class FineTuning(LanguageModelTask):
    """Next-token prediction by the model of a Hugging Face folder, whole or by low-rank updates.

    Weights are float32 while they are trained, and saved in the precision that they came in.

    Args:
        folder: what `save_pretrained` wrote, of a causal language model, with its tokenizer.
        config: of the run.
        data: to train and validate on, in the tokens of that tokenizer.
        low_rank: train low-rank updates, merged into the weights in the end; None: train the weights themselves.

    Raises:
        InputError: the folder cannot be read; LoRA is wanted, and PEFT is not installed, or weights are to be sharded.
    """

    def __init__(
        self, folder: str | Path, config: TextTrainingConfig, data: TrainingData, low_rank: LowRankConfig | None = None
    ) -> None:
        super().__init__(config, data)
        self._folder = folder = Path(folder)
        self._low_rank = low_rank
        self._fingerprint = model_fingerprint(folder)
        if low_rank is not None:
            require_peft()
            if config.execution.strategy == "fsdp":
                raise InputError("execution.strategy fsdp cannot merge low-rank updates: use ddp, or train all weights")

    def identity(self) -> dict[str, Any]:
        """The folder's content, wherever it lies, and the data."""
        low_rank = None if self._low_rank is None else asdict(self._low_rank)
        model = {"pretrained": self._folder.name, "sha256": self._fingerprint, "low_rank": low_rank}
        return {"model": model, **super().identity()}

    def widths(self) -> tuple[int, int]:
        """Those of the folder's feed-forward."""
        return feed_forward_widths(load_config(str(self._folder)))

    def build(self) -> PreTrainedModel:
        """Open the folder, on the CPU.

        Raises:
            InputError: it cannot be opened, is in another tokenizer's tokens, or takes no rows so long.
        """
        model, tokenizer = load_causal_lm(str(self._folder))
        if tokenizer.get_vocab() != self.data.tokenizer.get_vocab():
            raise InputError(
                f"the data are not in the tokens of {self._folder}: prepare them with data.tokenizer {self._folder}"
            )
        require_embedded([self.data.largest_token], model, tokenizer)
        length = self.positions
        if (longest := longest_window(tokenizer, model.config, length)) < length:
            raise InputError(
                f"{self._folder} takes no rows of {length} tokens: lower the sequence length to {longest} or less"
            )
        require_finite_parameters(model)
        # of the folder alone: read now, since nothing may fail for want of it after the last step
        self._dtypes = OriginalDtypes(model)
        nn.Module.float(model)
        if self._low_rank is not None:
            _add_low_rank(model, self._low_rank, self.config.seed)
        return model.train()

    def objective(
        self, model: PreTrainedModel, device: torch.device, *, compiled: bool
    ) -> CausalLanguageModelObjective:
        """The next-token loss, in the form that is right for the model.

        Raises:
            InputError: the model does not keep to the mask that separates packed documents, or the form that is right
                cannot be shared out.
        """
        length, separate = self.positions, not self.data_config.cross_documents
        kind = choose_objective(model, length, separate=separate, data=self.data.validation)
        if kind is SingleDocumentsObjective and self.config.execution.strategy == "fsdp":
            raise InputError(
                f"a {type(model).__name__} has to read documents one by one, and processes that share the model would "
                "have different numbers of them: use execution.strategy ddp"
            )
        return kind(model, choose_attention(device, length, compiled=compiled))

    def finish(self, objective: CausalLanguageModelObjective) -> dict[str, Any] | None:
        """Merge low-rank updates, and go back to the precision that each of the weights and buffers came in."""
        super().finish(objective)
        model = objective.model
        if self._low_rank is not None:
            _merge_low_rank(model)
        self._dtypes.restore(model)


def lora_settings(config: LowRankConfig, **more: Any) -> LoraConfig:
    """Return low-rank updates as PEFT has them.

    Args:
        config: which.
        **more: fields of PEFT's.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=list(config.targets) or "all-linear",
        bias="none",
        **more,
    )


def _add_low_rank(model: PreTrainedModel, config: LowRankConfig, seed: int) -> None:
    from peft.tuners.lora import LoraModel

    settings = lora_settings(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            LoraModel(model, settings, "default")
        except ValueError as error:
            wanted = f"low_rank.targets {', '.join(config.targets)}" if config.targets else "low-rank updates"
            raise InputError(f"a {type(model).__name__} cannot have {wanted}: {error}") from error


def _merge_low_rank(model: PreTrainedModel) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in [*model.named_modules()]:
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    vars(model).pop("peft_config", None)  # PEFT warns of it when it adds updates again


def require_peft() -> None:
    """Raise InputError if PEFT is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError("LoRA needs PEFT: pip install 'mixln[healing]', or train all weights") from error


def model_fingerprint(folder: Path) -> str:
    """sha256 over config and weights of a folder that `save_pretrained` wrote.

    Raises:
        InputError: there are none.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
    if not files:
        raise InputError(f"{folder} holds no model: give a folder that save_pretrained wrote")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
