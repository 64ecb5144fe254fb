"""Where the parts of a model are: blocks, attention, feed-forward, norms, final norm, embedding and head.

    embedding ... -> x_1 -> block 1 -> x_2 -> ... -> block L -> x_(L+1) -> final norm -> head

The architectures of this library declare their names. In any other model they are found, without a list of model names:
the blocks are the list of modules that its config counts; what a forward reads before it comes to the blocks is the
embedding, and what it reads after them is the final norm and the head.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from mixln.errors import InputError
from mixln.models.causal import without_heads
from mixln.models.encoding import input_embeddings
from mixln.models.stack import PlacedLayer, PlacedStack

BlockList = nn.ModuleList | nn.Sequential

Part = int | Literal["embedding", "final_norm", "head"]
"""A part of a model by depth; a number is that of a block, from 0."""

_ATTENTION = re.compile(r"attn|attention|mixer", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"mlp|feed_?forward|ffn|moe|experts", re.IGNORECASE)
_NORM = re.compile(r"norm|^ln_|_ln$", re.IGNORECASE)


@dataclass(frozen=True)
class BlockStack:
    """The blocks of a model.

    Attributes:
        model: the model.
        name: where the blocks are in it, such as `model.layers`.
        layers: the L blocks, in the order in which they run.
    """

    model: nn.Module
    name: str
    layers: BlockList


@dataclass(frozen=True)
class BlockAnatomy:
    """The parts of one block, by name within it.

    Attributes:
        attention: children that are its attention, or take its place.
        feed_forward: children that are its feed-forward.
        norms: its norms, those inside of attention and feed-forward included.
    """

    attention: frozenset[str]
    feed_forward: frozenset[str]
    norms: frozenset[str]


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model.

    Attributes:
        stack: its blocks.
        before: names of the modules and parameters outside of the blocks that run before them: embeddings, norms on
            them, and whole encoders.
        final_norm: name of the norm between the blocks and the head; None: there is none.
        after: names of the others, which run after the blocks: heads, poolers, projections.
    """

    stack: BlockStack
    before: tuple[str, ...]
    final_norm: str | None
    after: tuple[str, ...]

    def final_norm_module(self) -> nn.Module | None:
        """Return the norm between the blocks and the head."""
        return None if self.final_norm is None else self.stack.model.get_submodule(self.final_norm)

    def parameters(self) -> dict[str, Part]:
        """Return the part of each parameter, by its name; a shared one belongs to the first part that has it."""
        order: list[tuple[str, Part]] = []
        order.extend((name, "embedding") for name in self.before)
        order.extend((f"{self.stack.name}.{index}", index) for index in range(len(self.stack.layers)))
        if self.final_norm is not None:
            order.append((self.final_norm, "final_norm"))
        order.extend((name, "head") for name in self.after)
        parts: dict[int, Part] = {}
        for name, part in order:
            for parameter in _parameters_at(self.stack.model, name):
                parts.setdefault(id(parameter), part)
        return {name: parts[id(parameter)] for name, parameter in self.stack.model.named_parameters()}


def find_block_stack(model: nn.Module, stack: str | None = None) -> BlockStack:
    """Find the repeated blocks of a model.

    Candidates are the lists of modules (`nn.ModuleList`, `nn.Sequential` of one class) that hold parameters and lie in
    no other candidate. One is taken if it is the only one, or if the config of a model that is not an encoder-decoder
    has `num_hidden_layers` and only one list is of that length. That the blocks feed each other is checked when the
    model runs (`mixln.measure.recording`).

    Args:
        model: any module; usually a Hugging Face model.
        stack: the name of the list in the model, such as `model.layers`, where the model has several.

    Raises:
        InputError: there is none, it is empty, or there are several; the message names the candidates.
    """
    candidates = lists_of_blocks(model)
    if stack is not None:
        return BlockStack(model, stack, _named_list(model, stack, candidates))
    chosen = list(candidates)
    if len(chosen) > 1 and not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        length = _config_length(model)
        chosen = [name for name in chosen if len(candidates[name]) == length] or chosen
    if len(chosen) != 1:
        kind = type(model).__name__
        if not chosen:
            raise InputError(f"a {kind} has no list of blocks (nn.ModuleList). Give a model that has one")
        raise InputError(
            f"which list holds the blocks of a {kind} is not clear: {_listing(candidates)}. Name one: "
            f"`stack={chosen[0]}`"
        )
    return BlockStack(model, chosen[0], candidates[chosen[0]])


def find_anatomy(model: nn.Module, stack: str | None = None) -> Anatomy:
    """Find the parts of a model.

    Args:
        model: any module; usually a Hugging Face model.
        stack: the name of its list of blocks, where it has several.

    Raises:
        InputError: as `find_block_stack`.
    """
    blocks = find_block_stack(model, stack)
    before, after = _around(model, blocks.name, input_embeddings(model))
    final_norm = _declared_final_norm(model) or _found_final_norm(model, after)
    return Anatomy(blocks, tuple(before), final_norm, tuple(name for name in after if name != final_norm))


def block_anatomy(block: nn.Module) -> BlockAnatomy:
    """Find the parts of a block by the names of its modules."""
    children = [name for name, _ in block.named_children()]
    attention = {name for name in children if _ATTENTION.search(name)}
    feed_forward = {name for name in children if _FEED_FORWARD.search(name)} - attention
    if isinstance(block, PlacedLayer):
        attention, feed_forward = {block.attention_name}, {"mlp"}
    norms = {name for name, _ in block.named_modules() if _NORM.search(name.split(".")[-1])}
    return BlockAnatomy(frozenset(attention), frozenset(feed_forward), frozenset(norms))


def lists_of_blocks(model: nn.Module) -> dict[str, BlockList]:
    """Return the lists of modules that could be the blocks of a module, by name; none lies in another."""
    found: dict[str, BlockList] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(module, nn.Sequential) and (len(module) < 2 or len({type(child) for child in module}) > 1):
            continue
        if (
            isinstance(module, BlockList)
            and len(module)
            and all(next(child.parameters(), None) is not None for child in module)
        ):
            found[name] = module
    return found


def _config_length(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    if config is None:
        return None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "num_hidden_layers", None)


def _named_list(model: nn.Module, name: str, candidates: Mapping[str, BlockList]) -> BlockList:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, BlockList) or not len(module):
        what = "is not there" if module is None else f"is a {type(module).__name__}, not a list of blocks"
        raise InputError(f"`stack={name}`: {what}. A {type(model).__name__} has {_listing(candidates)}")
    return module


def _listing(candidates: Mapping[str, BlockList]) -> str:
    return ", ".join(f"{name} ({len(blocks)} x {type(blocks[0]).__name__})" for name, blocks in candidates.items())


def _around(model: nn.Module, stack: str, embeddings: nn.Module | None) -> tuple[list[str], list[str]]:
    """Return the names of what runs before the blocks, and of what runs after them, the innermost first."""
    before: list[str] = []
    after: list[str] = []
    owner, prefix = model, ""
    for step in stack.split(".") if stack else []:
        mentioned = _mentions(type(owner), "forward")
        names = [*(name for name, _ in owner.named_parameters(recurse=False)), *dict(owner.named_children())]
        runs_before = _running_before(names, step, mentioned)
        runs_before |= {name for name, child in owner.named_children() if child is embeddings}
        before += [prefix + name for name in names if name in runs_before]
        behind = [name for name in names if name not in runs_before and name != step]
        after[:0] = [prefix + name for name in sorted(behind, key=lambda name: _position(name, mentioned))]
        owner, prefix = owner.get_submodule(step), f"{prefix}{step}."
    return before, after


def _running_before(names: Sequence[str], step: str, mentioned: Sequence[str]) -> set[str]:
    """Return which of a module's parts its forward reads before the one that holds the blocks.

    For parts that it does not read by name, the order in the module decides.
    """
    blocks = mentioned.index(step) if step in mentioned else None
    registered = {*names[: names.index(step)]} if step in names else set()

    def is_before(name: str) -> bool:
        if blocks is None or name not in mentioned:
            return name in registered
        return mentioned.index(name) < blocks

    return {name for name in names if name != step and is_before(name)}


def _position(name: str, mentioned: Sequence[str]) -> int:
    return mentioned.index(name) if name in mentioned else len(mentioned)


@cache
def _mentions(module_class: type, method: str, following: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the attributes that a method reads from its object, in that order; the methods it calls are followed."""
    return tuple(_read(module_class.__mro__, method, following))


def _read(classes: tuple[type, ...], method: str, following: tuple[str, ...]) -> Iterator[str]:
    at = next((index for index, one in enumerate(classes) if method in vars(one)), None)
    function = None if at is None else inspect.unwrap(vars(classes[at])[method])
    if at is None or not inspect.isfunction(function) or len(following) > _DEEPEST:
        return
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):  # a class without a file: the order of its parts decides
        return
    for owner, name in _evaluated(source):
        if owner == "super":
            yield from _read(classes[at + 1 :], name, (*following, method))
        elif not callable(getattr(classes[0], name, None)):
            yield name
        elif name not in following and not hasattr(PreTrainedModel, name):
            yield from _mentions(classes[0], name, (*following, method))


_DEEPEST = 5
"""How many methods that call each other are followed."""


def _evaluated(node: ast.AST, *, is_called: bool = False) -> Iterator[tuple[str, str]]:
    """Yield what code reads from `self` and `super()`, arguments before the function that gets them.

    A part that is only counted (`len(self.layers)`) or asked for something (`self.model.dtype`) does not run there.
    """
    match node:
        case ast.Call(func=ast.Name("len")):
            return
        case ast.Call():
            for argument in (*node.args, *node.keywords):
                yield from _evaluated(argument)
            yield from _evaluated(node.func, is_called=True)
        case ast.Attribute(value=ast.Name("self")):
            yield "self", node.attr
        case ast.Attribute(value=ast.Call(func=ast.Name("super"))):
            yield "super", node.attr
        case ast.Attribute(value=ast.Attribute(value=ast.Name("self"))) if not is_called or node.attr[:4] == "get_":
            return
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _evaluated(child)


def _declared_final_norm(model: nn.Module) -> str | None:
    for name, module in model.named_modules():
        if isinstance(module, PlacedStack):
            return f"{name}.{module.final_norm_name}" if name else module.final_norm_name
    return None


def _found_final_norm(model: nn.Module, after: Sequence[str]) -> str | None:
    """Return the first norm after the blocks that is not part of a head."""
    base = without_heads(model)[1]
    modules = dict(model.named_modules())
    inside = (name for name in after if name.startswith(base) and name in modules)
    return next((name for name in inside if _is_norm(modules[name])), None)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and all(parameter.ndim <= 1 for parameter in module.parameters())


def _parameters_at(model: nn.Module, name: str) -> Iterator[nn.Parameter]:
    owner, _, last = name.rpartition(".")
    found = getattr(model.get_submodule(owner), last)
    yield from (found,) if isinstance(found, nn.Parameter) else found.parameters()
