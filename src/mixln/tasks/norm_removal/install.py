"""Putting frozen-scale norms in place of a model's own, and refusing models whose norms cannot go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache

from mixln.errors import InputError
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.roles import RoleMatrix, role_matrices
from mixln.models.transformers_internals import Conv1D
from mixln.placement import NORM, PlacedBlock, Placement, StackPlan, SublayerPlan
from mixln.placement.departures import departures
from mixln.placement.plan import SUBLAYERS
from mixln.tasks.norm_removal.frozen_norm import FrozenScaleNorm, PositionClass, TokenClasses
from mixln.tasks.norm_removal.schedule import NormPath

_PATHS: dict[str, tuple[NormPath, ...]] = {"attention": ("query_key", "value"), "feed_forward": ("feed_forward",)}


@dataclass(frozen=True)
class FrozenNorms:
    """The norms of a model, after `install_frozen_norms`.

    Attributes:
        classes: of the tokens of the last forward.
        norms: by (path, layer); layer None is the norm before the head.
    """

    classes: TokenClasses
    norms: dict[tuple[NormPath, int | None], FrozenScaleNorm]

    def freeze(self, path: NormPath, index: int | None) -> None:
        """Freeze the scale of one norm as one of its readers sees it.

        Args:
            path: the reader.
            index: of the norm's layer, from 0; None: the final norm.
        """
        self.norms[path, index].freeze(path)

    def merge(self, position_class: PositionClass) -> None:
        """Give the tokens of a class the ordinary scale in every norm."""
        for norm in self._each():
            norm.merge(position_class)

    def begin_step(self) -> None:
        """Forget what has been added up: a step that is computed again only to see what went wrong does not count."""
        for norm in self._each():
            norm.totals.zero_()

    def finish_step(self, good: Tensor, reduce: Callable[[Tensor], Tensor]) -> None:
        """Move all averages by what has been seen since `begin_step`.

        Args:
            good: a bool on the device: whether to move them.
            reduce: adds a tensor up over the processes.
        """
        norms = self._each()
        totals = reduce(torch.stack([norm.totals for norm in norms]))
        for norm, own in zip(norms, totals, strict=True):
            norm.finish_step(own, good)

    def _each(self) -> list[FrozenScaleNorm]:
        return list(dict.fromkeys(self.norms.values()))


def install_frozen_norms(model: PlacedPreTrainedModel, end_of_text: int | None) -> FrozenNorms:
    """Replace every norm of a model by a `FrozenScaleNorm`, in place; nothing is frozen yet, and its function is kept.

    Args:
        model: a language model of this library whose placement has norms on the inputs of its sublayers only.
        end_of_text: id of the token that ends a document, which has its own scale until that exception is merged.

    Raises:
        InputError: as `check_norms_removable`.
    """
    config = model.config
    assert isinstance(config, PlacedConfig)
    check_norms_removable(config.stack_plan, config.placement)
    classes = TokenClasses(end_of_text)
    description = config.norm_factory()

    def put_in(owner: nn.Module, attribute: str, paths: tuple[NormPath, ...], layer: int | None) -> None:
        norm = FrozenScaleNorm(owner.get_submodule(attribute), description, paths, layer, classes)
        setattr(owner, attribute, norm.train(model.training))

    blocks = [module for module in model.modules() if isinstance(module, PlacedBlock)]
    for layer, block in enumerate(blocks):
        for sublayer in SUBLAYERS:
            put_in(block, block.part_names[sublayer]["input_norm"], _PATHS[sublayer], layer)
    stack: Any = model.base_model
    put_in(stack, stack.final_norm_name, ("final",), None)
    found = find_frozen_norms(model)
    for matrix in role_matrices(model):
        if "value" in matrix.roles:
            assert matrix.block is not None
            projection = model.get_submodule(matrix.name.rpartition(".")[0])
            gain = config.stack_plan.blocks[matrix.block].attention.gain
            _let_value_read(projection, matrix, found.norms["value", matrix.block], gain)
    stack.register_forward_pre_hook(_class_reader(classes), with_kwargs=True)
    return found


def find_frozen_norms(model: nn.Module) -> FrozenNorms:
    """Return the norms that `install_frozen_norms` has put into a model; of one without: none."""
    norms = [module for module in model.modules() if isinstance(module, FrozenScaleNorm)]
    classes = norms[0].classes if norms else TokenClasses(None)
    return FrozenNorms(classes, {(path, norm.layer): norm for norm in norms for path in norm.paths})


def check_norms_removable(plan: StackPlan, placement: str) -> None:
    """Make sure that every norm of a stack stands where its scale can be frozen and folded away.

    Raises:
        InputError: there is none, or one stands elsewhere or is of another kind; says why that one cannot go. Or the
            placement has other parts that one without norms lacks.
    """
    if not plan.norms:
        raise InputError(f"placement {placement} has no norms: there is nothing to remove")
    sublayers = [block.sublayer(name) for block in plan.blocks for name in SUBLAYERS]
    if any(one.output_norm is not None for one in sublayers):
        raise InputError(
            f"placement {placement} has norms on the residual path (Post-LN): y = N(x + F(x)) rescales the stream "
            "itself in every layer, so that freezing one changes what all later layers read. Norms can be removed from "
            "Pre-LN models, where they stand on the inputs of sublayers: pre, lns"
        )
    elsewhere = {
        "behind sublayers (N_branch)": any(one.branch_norm is not None for one in sublayers),
        "on the embedding": plan.embedding_norm is not None,
        "on queries, keys or values": any(one.qkv_norm is not None for one in sublayers),
    }
    if found := [where for where, is_there in elsewhere.items() if is_there]:
        raise InputError(
            f"placement {placement} has norms {' and '.join(found)}: the method removes those on the inputs of "
            "sublayers and before the head (pre, lns), and says nothing of others"
        )
    if plan.norms != {NORM}:
        kinds = ", ".join(sorted(norm.kind if norm.groups == 1 else "grouped" for norm in plan.norms - {NORM}))
        raise InputError(
            f"placement {placement} has {kinds} norms, which have no one scale for a token that could be frozen: only "
            "LayerNorm and RMSNorm can be removed"
        )
    if plan.final_norm is None or any(one.input_norm is None for one in sublayers):
        raise InputError(f"placement {placement} lacks some of the norms of Pre-LN: removal needs all of them or none")
    text = norm_free_placement(placement)
    left = Placement.parse(text).plan(len(plan.blocks))
    if not _without_norms(plan).same_function_as(left):
        parts = "; ".join(departures(_without_norms(plan), left))
        raise InputError(
            f"placement {placement} has parts that would remain without the norms, and that {text} does not "
            f"have: {parts}"
        )


def norm_free_placement(placement: str) -> str:
    """Return the placement that is left when the norms are gone: `none`, with the modifiers that there were."""
    return "+".join(("none", *map(str, Placement.parse(placement).modifiers)))


def _without_norms(plan: StackPlan) -> StackPlan:
    """Return what a stack computes whose norms, and the gains on them, have gone into its matrices."""

    def bare(sublayer: SublayerPlan) -> SublayerPlan:
        return replace(sublayer, input_norm=None, gain=1.0)

    blocks = tuple(
        replace(block, attention=bare(block.attention), feed_forward=bare(block.feed_forward)) for block in plan.blocks
    )
    return replace(plan, blocks=blocks, final_norm=None, head_bias=True)


def _class_reader(classes: TokenClasses) -> Callable[..., None]:
    def read(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        input_ids = keywords.get("input_ids", arguments[0] if arguments else None)
        if input_ids is None:
            raise ValueError("frozen norms look at the tokens: give input_ids, not inputs_embeds")
        position_ids = keywords.get("position_ids")
        if position_ids is None:
            position_ids = _positions(input_ids, keywords)
        classes.read(input_ids, position_ids)

    return read


def _positions(input_ids: Tensor, keywords: dict[str, Any]) -> Tensor:
    """Return where each token stands in its document, (batch or 1, sequence), of a model that is not told."""
    length, mask = input_ids.shape[1], keywords.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:  # padding on the left moves the first token
        return (mask.long().cumsum(-1) - 1)[:, -length:]
    # by what it is: its name differs between versions of transformers
    cache = next((value for value in keywords.values() if isinstance(value, Cache)), None)
    start = 0 if cache is None else cache.get_seq_length()
    return torch.arange(start, start + length, device=input_ids.device)[None]


def _let_value_read(projection: nn.Module, matrix: RoleMatrix, norm: FrozenScaleNorm, gain: float) -> None:
    """Let the value projection read its own path's output, times the sublayer's gain, wherever its matrix lies."""

    def own_input(_module: nn.Module, _arguments: tuple[Any, ...]) -> tuple[Tensor]:
        return (_take(norm) * gain,)

    def own_part(module: nn.Module, _arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        weight = matrix.parts(module.get_parameter("weight"))["value"]
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias = matrix.parts(bias, dim=0)["value"]
        value = F.linear(_take(norm) * gain, weight.T if isinstance(module, Conv1D) else weight, bias)
        return torch.cat([*({**matrix.parts(output, dim=-1), "value": value}).values()], dim=-1)

    if matrix.roles == ("value",):
        projection.register_forward_pre_hook(own_input)
    else:
        projection.register_forward_hook(own_part)


def _take(norm: FrozenScaleNorm) -> Tensor:
    output, norm.value_output = norm.value_output, None
    assert output is not None
    return output
