"""What training minimises, as one module: tokens in, summed loss out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from mixln.data import Batch
from mixln.errors import InputError
from mixln.models.anatomy import find_anatomy, find_block_stack
from mixln.models.transformers_internals import enable_activation_checkpointing
from mixln.tasks.linear_cross_entropy import HeadKernels, linear_cross_entropy
from mixln.training.objective import Objective

AttentionKind = Literal["sdpa", "eager", "flex_attention"]
"""Names of transformers' attention implementations."""

_LONGEST_EXPLICIT_SEQUENCE = 512
"""Up to here a compiled explicit softmax is faster on a CPU than the fused kernel, whose backward is slow."""

SPLIT_EVENLY = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
"""Sizes of a model, as its config calls them, of which each process gets an equal part in tensor parallelism."""

_STYLES: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
"""Those of transformers' plans, in PyTorch's terms."""


class CausalLanguageModelObjective(Objective):
    """Next-token loss of packed documents; it reads the head's weight and bias without calling the head.

    Args:
        model: a causal language model of transformers' form.
        attention: how attention is computed; all kinds compute the same.

    Attributes:
        model: the same model.
        kernels: of the head; to be replaced by compiled ones.
    """

    def __init__(self, model: PreTrainedModel, attention: AttentionKind = "sdpa") -> None:
        super().__init__(model)
        self.attention: AttentionKind = "sdpa"
        self.kernels = HeadKernels()
        self.use_attention(attention)

    def use_attention(self, attention: AttentionKind) -> None:
        """Change how attention is computed: as wanted, or eagerly in an architecture that has it no other way."""
        # transformers' own marks of what a class supports
        supports = {"sdpa": self.model._supports_sdpa, "flex_attention": self.model._supports_flex_attn, "eager": True}
        self.attention = attention if supports[attention] else "eager"
        self.model.set_attn_implementation(self.attention)

    def forward(self, input_ids: Tensor, position_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss summed over predicted tokens, in nats, a scalar; all arguments (batch, sequence), int64.

        Attention stays within documents: those begin where `position_ids` are 0.
        """
        mask = self.mask(position_ids)
        decoder = self.model.get_decoder()
        hidden_states = decoder(
            input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return linear_cross_entropy(
            hidden_states.flatten(0, 1), head.weight, targets.flatten(), bias=head.bias, kernels=self.kernels
        )

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the summed loss of a batch."""
        return self(batch.input_ids, batch.position_ids, batch.targets)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks."""
        return [*find_block_stack(self.model).layers]

    def compiled_modules(self) -> Sequence[nn.Module]:
        """Return the blocks and the final norm, if there is one."""
        final_norm = find_anatomy(self.model).final_norm_module()
        return [*self.blocks(), *([] if final_norm is None else [final_norm])]

    def use_compiled_kernels(self, *, wanted: bool) -> None:
        """Compile what the head does besides multiplying matrices."""
        self.kernels = HeadKernels.compiled() if wanted else HeadKernels()

    def checkpoint_activations(self) -> None:
        """Let transformers do it."""
        enable_activation_checkpointing(self.model, use_reentrant=False)

    def split_matrices(self, mesh: DeviceMesh) -> None:
        """Split by transformers' own plan for the architecture.

        Raises:
            InputError: there is none, it has a style that is not known here, or not all processes get equal parts.
        """
        config = self.model.config
        check_tensor_parallel_size(
            {name: number for name in SPLIT_EVENLY if (number := getattr(config, name, None)) is not None}, mesh.size()
        )
        plan: dict[str, str] = getattr(config, "base_model_tp_plan", None) or {}
        if not plan or not set(plan.values()) <= set(_STYLES):
            super().split_matrices(mesh)  # refuses
        parallelize_module(self.model.base_model, mesh, {name: _STYLES[style]() for name, style in plan.items()})

    def mask(self, position_ids: Tensor) -> Tensor | BlockMask:
        """Return the mask that keeps attention within documents.

        Made here once: transformers would look into the position ids, which on a GPU waits for the device.
        """
        kind = position_ids.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return document_mask(position_ids, self.attention, dtype)


@contextmanager
def attention_of(objective: CausalLanguageModelObjective, attention: AttentionKind) -> Iterator[None]:
    """Within the block attention is computed in another way."""
    before = objective.attention
    objective.use_attention(attention)
    try:
        yield
    finally:
        objective.use_attention(before)


def choose_attention(device: torch.device, sequence_length: int, *, compiled: bool) -> AttentionKind:
    """Return the fastest attention for packed documents: measured on a CPU, by PyTorch's documentation on a GPU."""
    if compiled and device.type == "cuda":
        return "flex_attention"
    if compiled and device.type == "cpu" and sequence_length <= _LONGEST_EXPLICIT_SEQUENCE:
        return "eager"
    return "sdpa"


def check_tensor_parallel_size(sizes: Mapping[str, int], tensor_parallel_size: int) -> None:
    """Raise InputError if the processes that split a model's matrices cannot have equal parts of some sizes by name."""
    for name, number in sizes.items():
        if number % tensor_parallel_size != 0:
            raise InputError(
                f"execution.tensor_parallel_size ({tensor_parallel_size}) does not divide {name} ({number})"
            )


def document_mask(position_ids: Tensor, attention: AttentionKind, dtype: torch.dtype) -> Tensor | BlockMask:
    """Return the mask that lets each token see itself and what comes before it in its own document.

    Args:
        position_ids: (batch, sequence), from 0 at each document's start.
        attention: for which implementation.
        dtype: of an additive mask.

    Returns:
        sdpa: bool (batch, 1, sequence, sequence), true where attention is allowed; eager: the same shape, to be added
        to the scores; flex_attention: a block mask.
    """
    batch, length = position_ids.shape
    document = (position_ids == 0).cumsum(-1)
    if attention == "flex_attention":

        def allowed_pair(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (document[row, query] == document[row, key])

        return create_block_mask(allowed_pair, batch, None, length, length, device=position_ids.device)
    causal = torch.ones(length, length, dtype=torch.bool, device=position_ids.device).tril()
    allowed = ((document[:, :, None] == document[:, None, :]) & causal)[:, None]
    if attention == "sdpa":
        return allowed
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=position_ids.device)
    return zeros.masked_fill_(~allowed, torch.finfo(dtype).min)
