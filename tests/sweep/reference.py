"""What a changed model really gives: a copy is changed for good, and run afresh, row by row, without a cache.

Nothing of mixln is used here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

Rows = Sequence[dict[str, torch.Tensor]]
Change = Callable[[nn.Module, str], None]
"""Changes a copy of a model, of which the name of the list of blocks is given, in place."""


def run(model: nn.Module, row: dict[str, torch.Tensor]) -> Any:
    """One fresh forward pass, without a cache."""
    cached = [config for config in _configs(model) if getattr(config, "use_cache", False)]
    for config in cached:
        config.use_cache = False
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of models that draw something when they are used
            return model(**row)
    finally:
        for config in cached:
            config.use_cache = True


def main_output(output: Any) -> Any:
    """The tensor that a model is judged by; None: there is none."""
    for name in ("logits", "last_hidden_state", "prediction_logits"):
        if isinstance(value := getattr(output, name, None), torch.Tensor):
            return value
    return next((value for value in output.values() if isinstance(value, torch.Tensor)), None)


def losses(model: nn.Module, rows: Rows) -> float:
    """Cross-entropy of the next token, in nats, over all rows."""
    total, count = 0.0, 0
    for row in rows:
        logits = run(model, row).logits[0].double()
        targets = row["input_ids"][0, 1:]
        total += F.cross_entropy(logits[: len(targets)], targets, reduction="sum").item()
        count += len(targets)
    return total / count


def class_loss(model: nn.Module, rows: Rows, classes: torch.Tensor) -> float:
    """Cross-entropy of the classes of images, in nats, over all rows."""
    logits = torch.cat([run(model, row).logits.double() for row in rows])
    return F.cross_entropy(logits, classes).item()


def wrong_share(model: nn.Module, rows: Rows, classes: torch.Tensor) -> float:
    """The share of images whose largest logit is of another class."""
    answers = [run(model, row).logits[0].tolist() for row in rows]
    return sum(max(given) != given[own] for given, own in zip(answers, classes.tolist(), strict=True)) / len(rows)


def pooled(model: nn.Module, rows: Rows) -> torch.Tensor:
    """The mean of the last hidden states of each row."""
    return torch.stack([run(model, row).last_hidden_state[0].double().mean(0) for row in rows])


def turn(whole: torch.Tensor, changed: torch.Tensor) -> float:
    """1 - cosine of the pooled embeddings, over rows."""
    return (1 - F.cosine_similarity(changed, whole, dim=-1)).mean().item()


def changed_copy(model: nn.Module, blocks: str, change: Change) -> nn.Module:
    """A copy of a model, changed; its parameters and hooks are the model's own, which no change writes."""
    hooks = [found for module in model.modules() for name, found in vars(module).items() if "_hooks" in name]
    other = copy.deepcopy(model, {id(shared): shared for shared in (*model.parameters(), *hooks)})
    change(other, blocks)
    return other


Arguments = dict[str | int, Any]
"""Of a call: positions and names."""


class Forms:
    """What the blocks give each other beside hidden states, as it is seen in one fresh forward pass.

    What a block hands to the next (a position bias, a router's states) comes, in a changed model, from whichever block
    ran before; its other arguments (a mask, an embedding of its own) stay with the block, wherever it stands.
    """

    def __init__(self, model: nn.Module, blocks: str, row: dict[str, torch.Tensor]) -> None:
        model = copy.deepcopy(model)
        self._outputs: dict[int, Any] = {}
        self._inputs: dict[int, Arguments] = {}
        self._ran: dict[int, list[tuple[str, nn.Module]]] = {}
        for index, block in enumerate(_list(model, blocks)):
            block.register_forward_hook(self._keep(index), with_kwargs=True)
            for name, module in block.named_modules():
                if name:
                    module.register_forward_hook(self._note(index, name))
        run(model, row)
        self._handed = self._find_handed()

    def _find_handed(self) -> dict[int, str | int]:
        """From the places in a block's output to the arguments of the next that they are."""
        found: dict[int, str | int] = {}
        for index, output in self._outputs.items():
            for place, value in enumerate(output) if isinstance(output, (tuple, list)) else ():
                for name, given in self._inputs.get(index + 1, {}).items():
                    if place and value is not None and given is value:
                        found[place] = name
        return found

    def _keep(self, index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._outputs[index] = output
            self._inputs[index] = _arguments(args, kwargs)

        return hook

    def _handing(self, output: Any, arguments: Arguments) -> Arguments:
        """The arguments of a call that follows this output."""
        others = {name: output[place] for place, name in self._handed.items() if isinstance(output, (tuple, list))}
        return {**arguments, **others, _stream(arguments): _hidden(output)}

    def bypassed(self, indices: Sequence[int]) -> Change:
        """Blocks that give back what they get."""

        def change(model: nn.Module, blocks: str) -> None:
            for index in self._outputs.keys() & set(indices):  # on text alone, blocks for images are not run
                block = _list(model, blocks)[index]
                block.forward = self._bypass(self._outputs[index], block.forward)

        return change

    def _bypass(self, form: Any, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments = _arguments(args, kwargs)
            hidden_states = arguments[_stream(arguments)]
            if not isinstance(form, (tuple, list)):
                return hidden_states
            output: list[Any] = [hidden_states, *(None for _ in form[1:])]
            left = [place for place, value in enumerate(form) if place and value is not None]
            for place in left:
                output[place] = arguments.get(self._handed[place]) if place in self._handed else None
            if any(place not in self._handed for place in left):
                again = own(*args, **kwargs)
                for place in left:
                    output[place] = output[place] if place in self._handed else again[place]
            return type(form)(output)

        return forward

    def swapped_calls(self, first: int) -> Change:
        """A block and the next in each other's place, each with the arguments that are its own."""

        def change(model: nn.Module, blocks: str) -> None:
            one, other = _list(model, blocks)[first], _list(model, blocks)[first + 1]
            run_one, run_other = one.forward, other.forward
            given: list[Arguments] = []

            def waiting(*args: Any, **kwargs: Any) -> Any:
                given.append(_arguments(args, kwargs))
                return self._bypass(self._outputs[first], run_one)(*args, **kwargs)

            def both(*args: Any, **kwargs: Any) -> Any:
                before = given.pop()
                flowing = [_stream(before), *self._handed.values()]
                own = {**_arguments(args, kwargs), **{name: before.get(name) for name in flowing if name in before}}
                return _call(run_one, self._handing(_call(run_other, own), before))

            one.forward, other.forward = waiting, both

        return change

    def repeated(self, index: int) -> Change:
        """A block run twice."""

        def change(model: nn.Module, blocks: str) -> None:
            block = _list(model, blocks)[index]
            once = block.forward

            def twice(*args: Any, **kwargs: Any) -> Any:
                arguments = _arguments(args, kwargs)
                if any(isinstance(value, Cache) for value in arguments.values()):
                    raise ValueError("the second run would see keys and values of the first")
                return _call(once, self._handing(_call(once, arguments), arguments))

            block.forward = twice

        return change

    def _note(self, index: int, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _arguments: Any, _output: Any) -> None:
            self._ran.setdefault(index, []).append((name, module))

        return hook

    def silenced(self, index: int, kind: str) -> Change:
        """A block's attention or feed_forward gives zeros.

        Raises:
            ValueError: the block has none.
        """
        sublayer = self._sublayer(index, kind)
        if sublayer is None:
            raise ValueError(f"block {index} has no {kind}")
        return _silenced(index, sublayer)

    def _sublayer(self, index: int, kind: str) -> str | None:
        """The module whose output is a sublayer's, by what docs/concepts/replay.md says of it."""
        ran = self._ran.get(index, [])
        inside = [(name, module) for name, module in ran if _is_attention(name)]
        outside = [(name, module) for name, module in ran if not _is_attention(name) and not _is_norm(name)]
        if kind == "attention":
            linear = [name for name, module in inside if isinstance(module, (nn.Linear, Conv1D))]
            return linear[-1] if linear else None
        called = {
            name.split(".")[0]
            for name, module in outside
            if _FEED_FORWARD.search(name.split(".")[0])
            and (isinstance(module, (nn.Linear, Conv1D)) or "experts" in name.split("."))
        }
        if len(called) > 1:
            return None  # side by side: the output of none is the sublayer's
        outside = [(name, module) for name, module in outside if not called or name.split(".")[0] in called]
        if experts := [name.split(".")[0] for name, _ in outside if "experts" in name.split(".")]:
            return experts[-1]
        linear = [name for name, module in outside if isinstance(module, (nn.Linear, Conv1D))]
        return linear[-1] if linear else None


def swapped(first: int) -> Change:
    """A block and the next in each other's place in the model's list, and in its config's lists."""

    def change(model: nn.Module, blocks: str) -> None:
        layers = _list(model, blocks)
        length = len(layers)
        layers[first], layers[first + 1] = layers[first + 1], layers[first]
        for config in _configs(model):
            for value in vars(config).values():
                if isinstance(value, list) and len(value) == length:
                    value[first], value[first + 1] = value[first + 1], value[first]

    return change


def _silenced(index: int, sublayer: str) -> Change:
    def change(model: nn.Module, blocks: str) -> None:
        module = _list(model, blocks)[index].get_submodule(sublayer)
        own = module.forward

        def zeros(*args: Any, **kwargs: Any) -> Any:
            output = own(*args, **kwargs)
            if isinstance(output, (tuple, list)):
                return type(output)((torch.zeros_like(output[0]), *output[1:]))
            return torch.zeros_like(output)

        module.forward = zeros

    return change


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    return {**dict(enumerate(args)), **kwargs}


def _stream(arguments: Arguments) -> str | int:
    return 0 if 0 in arguments else "hidden_states"


def _hidden(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) else output


def _call(forward: Callable[..., Any], arguments: Arguments) -> Any:
    positional = [arguments[index] for index in range(len(arguments)) if index in arguments]
    return forward(*positional, **{name: value for name, value in arguments.items() if isinstance(name, str)})


def _list(model: nn.Module, blocks: str) -> Any:
    return model.get_submodule(blocks)


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return [config for config in found.values() if isinstance(config, PreTrainedConfig)]


_FEED_FORWARD = re.compile("mlp|feed_?forward|ffn|moe|experts", re.IGNORECASE)


def _is_attention(name: str) -> bool:
    return re.search(r"attn|attention|mixer", name.split(".")[0], re.IGNORECASE) is not None


def _is_norm(name: str) -> bool:
    return re.search(r"norm|^ln_|_ln$", name.split(".")[-1], re.IGNORECASE) is not None
