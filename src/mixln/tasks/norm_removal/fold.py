"""Folding frozen norms away: a frozen norm is linear, so the matrices around it can do its work.

    x -> N(x) = gamma * (x - mean(x)) / sigma + beta -> gain * N(x) -> W (gain * N(x)) + b

With C = I - 11^T / d, which takes the mean over channels off,

    matrices that write to the stream    W' = C W,  b' = C b,  and for rows of an embedding E' = E C
    matrices that read a norm            W' = gain * W diag(gamma) / sigma,  b' = b + gain * W beta

so that after the first line mean(x) = 0 for every token, and the second has no mean to take off. RMSNorm has no mean,
and its writers stay as they are. The head reads the final norm, with gain 1, and gets a bias for W beta.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixln.errors import InputError
from mixln.exchange.export import precise_logits
from mixln.models.apply import apply_placement, placeable_architecture
from mixln.models.decoder import PlacedForCausalLM
from mixln.models.placed import PlacedConfig
from mixln.models.roles import RoleMatrix, role_matrices
from mixln.models.transformers_internals import Conv1D
from mixln.modes import evaluation_mode
from mixln.placement import Role, StackPlan
from mixln.tasks.norm_removal.frozen_norm import CLASSES, ORDINARY, FrozenScaleNorm
from mixln.tasks.norm_removal.install import FrozenNorms, norm_free_placement
from mixln.tasks.norm_removal.schedule import NormPath

_PATH_OF_ROLE: dict[Role, NormPath] = {
    "query": "query_key",
    "key": "query_key",
    "value": "value",
    "gate": "feed_forward",
    "up": "feed_forward",
    "head": "final",
}
"""By what path each reader's matrix sees its norm; matrices of other roles write to the stream."""


@dataclass(frozen=True)
class FoldReport:
    """How far a folded model is from the one with frozen norms: rounding, of the weights and of the forward.

    Attributes:
        difference: largest difference of their logits.
        largest_logit: of the model with frozen norms, by absolute value.
    """

    difference: float
    largest_logit: float


def fold_norms(model: PlacedForCausalLM, norms: FrozenNorms) -> PlacedForCausalLM:
    """Return a new model without norms that computes the same function; the given one stays as it is.

    Its placement is `none` with the modifiers that there were, its head its own and with a bias. Weights are computed
    in float64 and rounded to their dtype.

    Args:
        model: a language model, whole on one device, on which `install_frozen_norms` was called.
        norms: what that returned; everything in it frozen, at one scale for tokens of all classes.

    Raises:
        InputError: a scale is not frozen, or tokens of a class have another than the ordinary one; or the norms are not
            the model's, or there is a matrix without the bias that a norm's would go into.
        PlacementError: the model is quantised, spread over devices, or has adapters.
    """
    _check(model, norms)
    return _fold(model, norms, copy.deepcopy(model))


def fold_norms_in_place(
    model: PlacedForCausalLM, norms: FrozenNorms, tokens: Tensor
) -> tuple[PlacedForCausalLM, FoldReport]:
    """Fold the norms of a model into its own matrices; return the model without norms, and how far its logits moved.

    The model without norms has these matrices, as after `mixln.apply_placement`; the given one must not be used any
    more. A tied head becomes one of its own. On an error nothing has changed.

    Args:
        model: and `norms`: as for `fold_norms`.
        norms: see `model`.
        tokens: to compare the logits on, (batch, sequence), int64.

    Raises:
        InputError, PlacementError: as `fold_norms`.
    """
    _check(model, norms)
    with evaluation_mode(model):
        before = precise_logits(model, tokens)
    folded = _fold(model, norms, model)
    with evaluation_mode(folded):
        after = precise_logits(folded, tokens)
    return folded, FoldReport((after - before).abs().max().item(), before.abs().max().item())


@torch.no_grad()
def _fold(model: PlacedForCausalLM, norms: FrozenNorms, folded: PlacedForCausalLM) -> PlacedForCausalLM:
    """Fold a model's norms into the matrices of `folded` (a copy, or the model itself), and make it one without."""
    config, head = folded.config, folded.get_output_embeddings()
    assert isinstance(config, PlacedConfig)
    assert isinstance(head, nn.Linear)
    if config.tie_word_embeddings:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        config.tie_word_embeddings = False
    plan, head_bias = config.stack_plan, None
    # one matrix after the other, since in float64 the whole may not fit
    for matrix in role_matrices(model):
        name = matrix.name.rpartition(".")[0]
        module, own = model.get_submodule(name), folded.get_submodule(name)
        # (out, in), where what an embedding puts out are channels
        is_transposed = isinstance(module, Conv1D | nn.Embedding)
        weight, bias = module.get_parameter("weight").double(), getattr(module, "bias", None)
        weight = weight.T if is_transposed else weight
        if bias is not None:
            bias = bias.double()
        elif matrix.roles == ("head",):
            bias = weight.new_zeros(weight.shape[0])
        weight, bias = _folded_parts(matrix, weight, bias, norms, plan)
        own.get_parameter("weight").copy_(weight.T if is_transposed else weight)
        if matrix.roles == ("head",):
            head_bias = bias
        elif bias is not None:
            own.get_parameter("bias").copy_(bias)
    norm_free, _ = apply_placement(folded, norm_free_placement(config.placement))
    assert isinstance(norm_free, PlacedForCausalLM)
    # the one parameter that there may not have been before
    assert head_bias is not None
    norm_free.get_parameter("lm_head.bias").copy_(head_bias)
    return norm_free


def _check(model: PlacedForCausalLM, norms: FrozenNorms) -> None:
    if not isinstance(model, PlacedForCausalLM):
        raise InputError(f"{type(model).__name__} is no language model of this library: fold the one with the head")
    placeable_architecture(model)
    _check_frozen(model, norms)
    for matrix in role_matrices(model):
        name = matrix.name.rpartition(".")[0]
        has_bias = getattr(model.get_submodule(name), "bias", None) is not None or matrix.roles == ("head",)
        read = [
            norms.norms[path, matrix.block] for role in matrix.roles if (path := _PATH_OF_ROLE.get(role)) is not None
        ]
        if not has_bias and any(norm.bias is not None for norm in read):
            raise InputError(f"{matrix.name} has no bias, into which the bias of its norm could go: fold it by hand")


def _folded_parts(
    matrix: RoleMatrix, weight: Tensor, bias: Tensor | None, norms: FrozenNorms, plan: StackPlan
) -> tuple[Tensor, Tensor | None]:
    """Return a matrix (out, in) and its bias (out), folded; its parts, one for each role, lie along the first."""
    biases = {} if bias is None else matrix.parts(bias, dim=0)
    folded: list[tuple[Tensor, Tensor | None]] = []
    for role, rows in matrix.parts(weight, dim=0).items():
        own_bias = biases.get(role)
        path = _PATH_OF_ROLE.get(role)
        if path is None:
            if norms.norms["final", None].centered:  # C W and C b
                rows, own_bias = rows - rows.mean(0), None if own_bias is None else own_bias - own_bias.mean()
            folded.append((rows, own_bias))
            continue
        sublayer = "feed_forward" if path == "feed_forward" else "attention"
        gain = 1.0 if matrix.block is None else plan.blocks[matrix.block].sublayer(sublayer).gain
        folded.append(_read(norms.norms[path, matrix.block], path, gain, rows, own_bias))
    parts = [part for _, part in folded if part is not None]
    return torch.cat([rows for rows, _ in folded]), torch.cat(parts) if parts else None


def _read(
    norm: FrozenScaleNorm, path: NormPath, gain: float, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return gain * W diag(gamma) / sigma and b + gain * W beta."""
    scale = gain / norm.sigma[norm.paths.index(path), ORDINARY].double()
    columns = scale if norm.weight is None else scale * norm.weight.double()
    if norm.bias is not None:
        assert bias is not None  # see _check
        bias = bias + gain * (weight @ norm.bias.double())
    return weight * columns, bias


def _check_frozen(model: nn.Module, norms: FrozenNorms) -> None:
    modules = set(map(id, model.modules()))
    if not all(id(norm) in modules for norm in norms.norms.values()):
        raise InputError(
            "the norms are not those of the model: give what install_frozen_norms returned for it; it is of no "
            "use after folding"
        )
    states = {key: (norm, norm.paths.index(key[0])) for key, norm in norms.norms.items()}
    moving = [key for key, (norm, number) in states.items() if not norm.frozen[number]]
    if moving:
        raise InputError(
            f"these scales are not frozen, so that their norms cannot be folded: {', '.join(map(_in_words, moving))}. "
            "Freeze them (FrozenNorms.freeze)"
        )
    for number, position_class in enumerate(CLASSES):
        apart = [key for key, (norm, row) in states.items() if norm.sigma[row, number] != norm.sigma[row, ORDINARY]]
        if apart:
            raise InputError(
                f"tokens of class {position_class} have scales of their own ({', '.join(map(_in_words, apart))}), and "
                f'a folded norm has one for all: merge the class first (FrozenNorms.merge("{position_class}"))'
            )


def _in_words(key: tuple[NormPath, int | None]) -> str:
    path, layer = key
    return path if layer is None else f"{path} of layer {layer + 1}"
