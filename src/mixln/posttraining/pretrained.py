"""A trained language model of any architecture, as the model of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mixln.depth.forward import IGNORED_TARGET, evaluation_mode
from mixln.depth.texts import longest_window
from mixln.errors import InputError
from mixln.models.load import load_causal_lm
from mixln.training import Recipe
from mixln.training.intervention import Intervention
from mixln.training.objective import AttentionKind, CausalLanguageModelObjective

if TYPE_CHECKING:
    from peft.tuners.lora import LoraModel

_PROBED_TOKENS = 32


@dataclass(frozen=True)
class LowRankConfig:
    """LoRA (Hu et al. 2021): W x becomes W x + (alpha / rank) B A x; only A (rank, in) and B (out, rank) are trained.

    Attributes:
        rank: of every update.
        alpha: its scale; null: twice the rank.
        targets: endings of the names of the linear layers that get one; empty: all but the head.
    """

    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ()


class PretrainedModel:
    """A source of models (see `mixln.training.model_source.ModelSource`): a Hugging Face folder, trained further.

    Weights are float32 while they are trained, and saved in the precision that they came in.

    Args:
        folder: what `save_pretrained` wrote, of a causal language model, with its tokenizer.
        recipe: of the run; its `model` plays no part.
        tokenizer: of the run's data.
        low_rank: train low-rank updates, merged into the weights in the end; None: train the weights themselves.

    Raises:
        InputError: the folder cannot be read, or the data are not in its tokenizer's tokens; LoRA is wanted, and PEFT
            is not installed, or the recipe shards weights.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerFast,
        low_rank: LowRankConfig | None = None,
    ) -> None:
        self._folder = folder
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._low_rank = low_rank
        self.intervention: Intervention = Intervention()
        self._adapter: LoraModel | None = None
        self._saved_dtype = torch.float32
        self._fingerprint = model_fingerprint(folder)
        if low_rank is not None:
            _require_peft()
            if recipe.execution.strategy == "fsdp":
                raise InputError("execution.strategy fsdp cannot merge low-rank updates: use ddp, or train all weights")

    def describe(self) -> dict[str, Any]:
        """The folder's content, wherever it lies, in place of the recipe's model."""
        low_rank = None if self._low_rank is None else {**asdict(self._low_rank), "targets": [*self._low_rank.targets]}
        return {"model": {"pretrained": self._folder.name, "sha256": self._fingerprint, "low_rank": low_rank}}

    def warnings(self) -> list[str]:
        """None: the model has been trained before."""
        return []

    def build(self) -> PreTrainedModel:
        """Open the folder, on the CPU.

        Raises:
            InputError: it cannot be opened, is in another tokenizer's tokens, takes no rows so long, or does not keep
                to the mask that separates packed documents.
        """
        model, tokenizer = load_causal_lm(str(self._folder))
        if tokenizer.get_vocab() != self._tokenizer.get_vocab():
            raise InputError(
                f"the data are not in the tokens of {self._folder}: prepare them with data.tokenizer {self._folder}"
            )
        length = self._recipe.data.sequence_length
        if longest_window(tokenizer, model.config, length) < length:
            raise InputError(f"{self._folder} takes no rows of {length} tokens: lower the sequence length")
        self._saved_dtype = model.dtype
        nn.Module.float(model)
        _check_masks(self.wrap(model, "sdpa"), length, separate=not self._recipe.data.cross_documents)
        if self._low_rank is not None:
            self._adapter = _add_low_rank(model, self._low_rank, self._recipe.seed)
        return model.train()

    def wrap(self, model: PreTrainedModel, attention: AttentionKind) -> CausalLanguageModelObjective:
        """The next-token loss."""
        return next_token_objective(model, attention)

    def place(self, model: PreTrainedModel, device: torch.device) -> None:
        """Put it on the device."""
        nn.Module.to(model, device)

    def restart(self, model: PreTrainedModel) -> None:
        """Read the weights again."""
        adapter = self._adapter
        weights = get_model_state_dict(self.build())
        self._adapter = adapter
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))

    def profile(
        self, model: PreTrainedModel, forward: Callable[[], object], reduce: Callable[[Tensor], Tensor]
    ) -> None:
        """Nothing: the weights are trained ones."""

    def finish(self, model: PreTrainedModel) -> None:
        """Merge low-rank updates, and go back to the precision that the weights came in."""
        if self._adapter is not None:
            self._adapter.merge_and_unload()
            self._adapter = None
        nn.Module.to(model, self._saved_dtype)


def next_token_objective(model: PreTrainedModel, attention: AttentionKind) -> CausalLanguageModelObjective:
    """Return the next-token loss; by the model's own logits, if these are more than a matrix and a bias."""
    kind = CausalLanguageModelObjective if _has_plain_head(model) else LogitsObjective
    return kind(model, attention)


class LogitsObjective(CausalLanguageModelObjective):
    """The same loss from the model's own logits, for heads that do more than a matrix and a bias do (caps, scales).

    It takes more memory: the logits of all tokens are there at once.
    """

    def forward(self, input_ids: Tensor, position_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss summed over predicted tokens, in nats, a scalar; all arguments (batch, sequence), int64."""
        mask = self.mask(position_ids)
        logits = self.model(input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False).logits
        return F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED_TARGET, reduction="sum"
        )


def _has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are the decoder's last hidden states through the head's matrix and bias, to the last bit."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    seen: dict[str, Tensor] = {}

    def watch(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update(input=arguments[0], output=output)

    def watch_decoder(_module: nn.Module, _arguments: Any, output: Any) -> None:
        seen["hidden_states"] = output.last_hidden_state

    length = min(_PROBED_TOKENS, getattr(model.config, "max_position_embeddings", _PROBED_TOKENS))
    hooks = head.register_forward_hook(watch), model.get_decoder().register_forward_hook(watch_decoder)
    with hooks[0], hooks[1], evaluation_mode(model), torch.no_grad():
        logits = model(input_ids=_some_tokens(model, length), use_cache=False).logits
    return torch.equal(seen["output"], logits) and torch.equal(seen["input"], seen["hidden_states"])


def _check_masks(objective: CausalLanguageModelObjective, length: int, *, separate: bool) -> None:
    """Make sure that a packed row gives what its documents give alone.

    Raises:
        InputError: it does not: the architecture has its own idea of what attention sees.
    """
    model = objective.model
    tokens = _some_tokens(model, length)
    border = length // 2 if separate else 0
    positions = torch.cat([torch.arange(border), torch.arange(length - border)])[None]
    targets = tokens.roll(-1, 1)
    targets[:, : border + 1] = IGNORED_TARGET
    targets[:, -1] = IGNORED_TARGET
    with evaluation_mode(model), torch.no_grad():
        packed = objective(tokens, positions, targets)
        alone = model(input_ids=tokens[:, border:], use_cache=False).logits
        expected = F.cross_entropy(alone[0].float(), targets[0, border:], ignore_index=IGNORED_TARGET, reduction="sum")
    if not torch.allclose(packed, expected, rtol=1e-3):
        raise InputError(
            f"a {type(model).__name__} does not give a document packed into a row of {length} tokens the loss that it "
            f"has alone ({packed.item():.4f} instead of {expected.item():.4f}): it has masks or positions of its own. "
            "A shorter sequence length may help if it sees a window of tokens only"
        )


def _some_tokens(model: PreTrainedModel, length: int) -> Tensor:
    """Token ids (1, length), the same every time, none of them padding in most vocabularies."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    vocabulary = embeddings.num_embeddings
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary // 2, vocabulary, (1, length), generator=generator)
    return tokens.to(model.device)


def _add_low_rank(model: PreTrainedModel, config: LowRankConfig, seed: int) -> LoraModel:
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=list(config.targets) or "all-linear",
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return LoraModel(model, settings, "default")
        except ValueError as error:
            raise InputError(f"low_rank.targets: {error}") from error


def _require_peft() -> None:
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
