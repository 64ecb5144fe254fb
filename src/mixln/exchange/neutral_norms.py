"""Models without norms in stock classes, which have norms: their norms are made the identity.

    N(x) = w * x / sqrt(var(x) + eps)    with eps = 2^40, w = 2^20:    N(x) = x / sqrt(1 + var(x) / 2^40)

which is x up to a part of var(x) / 2^41. Both constants are powers of two, so nothing is rounded. LayerNorm takes the
mean off as well, which changes nothing where the stream has none, as `mixln.tasks.norm_removal.fold_norms` leaves it.
A bias b of the head, which stock classes lack, goes into the final norm's bias a, with W a = b for the head's matrix W.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mixln.errors import InputError
from mixln.exchange.fold import Folded
from mixln.exchange.layouts import LayoutError, StockLayout, own_layout
from mixln.models.placed import PlacedConfig
from mixln.models.registry import Architecture, architecture_of
from mixln.models.roles import WRITERS
from mixln.models.transformers_internals import Conv1D
from mixln.placement import Placement, find_role
from mixln.placement.plan import SUBLAYERS, StackPlan

NEUTRAL_EPS = float(2**40)
NEUTRAL_WEIGHT = float(2**20)


def neutral_layout(config: PlacedConfig) -> StockLayout:
    """Return the layout of an architecture's own classes with every norm made the identity.

    Raises:
        InputError: it is no architecture of language models.
    """
    found = architecture_of(config)
    if found is not None and not found.is_causal:
        raise InputError(f"norms are neutralised in the classes of language models alone, and {found.name} is none")
    own = own_layout(config)
    return StockLayout(own.config_class, "none", partial(_neutralise, own))


def _neutralise(own: StockLayout, config: PlacedConfig, folded: Folded) -> PreTrainedConfig:
    """Put a norm-free model's weights into the architecture's own layout, with norms that do nothing.

    Raises:
        LayoutError: the norms have no gain, or the dtype cannot hold it; or they take off a mean that the stream has;
            or the head has a bias for which there is no place.
    """
    found = architecture_of(config)
    assert found is not None
    eps_name = config.norm_eps_name
    norm = config.norm_factory()
    if eps_name is None or not norm.has_weight:
        raise LayoutError(
            f"the norms of {found.name} cannot be made to do nothing: they lack a gain, or an eps in the config"
        )
    example = next(iter(folded.weights.values()))
    dtype = example.dtype
    if torch.finfo(dtype).max < NEUTRAL_WEIGHT:
        raise LayoutError(
            f"a neutral norm has a gain of 2^20, which {str(dtype).removeprefix('torch.')} cannot hold (it ends at "
            f"{torch.finfo(dtype).max:.0f}): export it in bfloat16 or float32"
        )
    stock_config = own.build(config, folded)
    setattr(stock_config, eps_name, NEUTRAL_EPS)
    has_head = "lm_head.weight" in folded.weights
    with torch.device("meta"):
        stock = own.model_class(found.whole_class if has_head else found.model_class)(stock_config)
    if norm.centered:
        _check_mean_free(found, own, stock, folded)
    for name, parameter in stock.named_parameters():
        if name not in folded.weights and parameter.ndim == 1:
            value = 0.0 if name.endswith("bias") else NEUTRAL_WEIGHT
            folded.weights[name] = example.new_full(parameter.shape, value)
    if has_head:
        prefix = f"{stock.base_model_prefix}."
        _move_head_bias(folded, f"{prefix}{found.model_class.final_norm_name}.bias")
    return stock_config


def _check_mean_free(found: Architecture, own: StockLayout, stock: PreTrainedModel, folded: Folded) -> None:
    """Make sure that norms which take the mean off stand where there is none.

    Raises:
        LayoutError: they stand elsewhere than between the stream and what reads it, or a matrix writes a mean.
    """
    plan = Placement.parse(own.placement).plan(len(folded.plan.blocks))
    if not _norms_only_readers(plan):
        raise LayoutError("its norms subtract the mean, also where they do not read from the stream")
    prefix, roles = f"{stock.base_model_prefix}.", found.whole_class.parameter_roles
    for name, tensor in folded.weights.items():
        owner = name.rpartition(".")[0]
        role = find_role(f"{owner}.weight".removeprefix(prefix), roles)
        if role is None or role[0] not in WRITERS:
            continue
        module = stock.get_submodule(owner)
        # channels of the stream lie along the last dimension, but in a linear layer's matrix along the first
        last = tensor.ndim == 1 or isinstance(module, Conv1D | nn.Embedding)
        channels = tensor.double() if last else tensor.double().T
        # what rounding leaves of a mean that was taken off
        allowed = torch.finfo(tensor.dtype).eps * channels.pow(2).mean(-1).sqrt().max()
        if channels.mean(-1).abs().max() > allowed:
            raise LayoutError(
                f"its norms subtract the mean, and {name} writes a mean to the stream: only a model whose norms were "
                "folded away (mixln.tasks.norm_removal.fold_norms) has a stream without a mean"
            )


def _norms_only_readers(plan: StackPlan) -> bool:
    sublayers = [block.sublayer(name) for block in plan.blocks for name in SUBLAYERS]
    elsewhere = [part for one in sublayers for part in (one.branch_norm, one.output_norm, one.qkv_norm)]
    return plan.embedding_norm is None and not any(elsewhere)


def _move_head_bias(folded: Folded, target: str) -> None:
    """Put the head's bias into the final norm's.

    Raises:
        LayoutError: there is no such bias, or it cannot give the head's.
    """
    bias = folded.weights.pop("lm_head.bias")
    if not bias.any():
        return
    if target not in folded.weights:
        raise LayoutError("the head has a bias that is not 0, and the final norm has no bias that could take it")
    matrix, wanted = folded.weights["lm_head.weight"].double(), bias.double()
    solution = _least_squares(matrix, wanted)
    left = ((matrix @ solution - wanted).norm() / wanted.norm()).item()
    # what the rounding of matrix and bias to their dtype leaves; the solver has its own, of float64
    allowed = max(8 * torch.finfo(bias.dtype).eps, 1e-12)
    if not left <= allowed:
        raise LayoutError(
            f"no bias of the final norm gives the head's bias, which is not an output of the head's matrix (off by "
            f"{left:.2g} of its size, and rounding is {allowed:.2g})"
        )
    folded.weights[target] = solution.to(bias.dtype)


def _least_squares(matrix: Tensor, wanted: Tensor) -> Tensor:
    # on the CPU, whose solver takes matrices without full rank
    solved: Any = torch.linalg.lstsq(matrix.cpu(), wanted.cpu()[:, None], driver="gelsd")
    return solved.solution[:, 0].to(matrix.device)
