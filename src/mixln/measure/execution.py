"""Two ways to run a model whose blocks run in another order: from a recorded state, or as a whole forward pass.

A replay begins at the recorded state before the change and takes half the time on average. It is right if what a block
is called with, hidden states apart, does not depend on other blocks, and it keeps nothing. A whole pass takes nothing
from a record: the model is called as usual, and its own code hands the blocks what they get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from transformers import Cache

from mixln.measure.calls import BlockCall, block_output
from mixln.measure.forward import configs_in, model_device
from mixln.measure.interventions import Intervention
from mixln.measure.observation import Observation
from mixln.measure.recording import beside_hidden_states, replaced_forwards, run_blocks, run_tail, with_beside
from mixln.measure.sublayers import SublayerFinder, silenced
from mixln.models.anatomy import BlockStack
from mixln.models.foreign import ModelCallError, naming_failures


def replayed(observation: Observation, intervention: Intervention, sublayers: SublayerFinder) -> Any:
    """The model's output, from a recorded state on.

    Raises:
        ModelCallError: a block, or what comes after the blocks, fails.
    """
    stack, record, state = observation.stack, observation.record, intervention.state
    first, rest = intervention.blocks[:1], intervention.blocks[1:]
    hidden_states = record.hidden_states[state]
    working = record.calls[state].working_copies() if state < len(record.calls) else {}
    with naming_failures(f"a block of a {type(stack.model).__name__} cannot be run on this input"):
        with _without(intervention, sublayers):
            hidden_states = run_blocks(stack, hidden_states, record, first, working=working)
        hidden_states = run_blocks(stack, hidden_states, record, rest, working=working)
    return run_tail(stack, hidden_states, record, observation.batch.arguments_on(model_device(stack.model)))


def whole_pass(observation: Observation, intervention: Intervention, sublayers: SublayerFinder) -> Any:
    """The model's output from a fresh forward pass.

    Blocks that change places do so in the model's own list, and the entries of its config with them; if the model
    cannot run like that, since its code goes by their places, each gets what it is called with in its own.

    Raises:
        ModelCallError: the model fails.
    """
    stack = observation.stack
    places, runs, _ = intervention.stretch(len(stack.layers))
    if sorted(runs) == list(places) and intervention.silent is None:
        order = (*range(places.start), *runs, *range(places.stop, len(stack.layers)))
        try:
            with reordered_blocks(stack, order):
                return observation.batch.run(stack.model)
        except ModelCallError:
            pass
    return _in_place(observation, intervention, sublayers)


def _in_place(observation: Observation, intervention: Intervention, sublayers: SublayerFinder) -> Any:
    """A whole pass in which each block gets what it is called with in its own place.

    The blocks of the stretch that changes only note what they are called with, up to the last. In the place of the
    last, the blocks that are to run do so in their order, each with what it was called with, except for what blocks
    hand on to each other: hidden states, and those of their other outputs that are arguments of the next. A block that
    does not run gives these back as it was given them.
    """
    stack, record = observation.stack, observation.record
    places, runs, silent = intervention.stretch(len(stack.layers))
    handed_on = record.handed_on()
    calls: dict[int, BlockCall] = {}

    def given_back(index: int) -> tuple[Any, ...] | None:
        others, given = record.other_outputs[index], calls[index].by_name()
        if others is None:
            return None
        return tuple(given.get(handed_on.get(place, ""), value) for place, value in enumerate(others))

    def run_all(index: int) -> Any:
        first = calls[places[0]].by_name()
        if len({*runs}) < len(runs) and any(isinstance(value, Cache) for value in first.values()):
            reason = "a block that keeps keys and values in a cache would find its own there when it runs again"
            raise ModelCallError(f"a {type(stack.model).__name__} cannot run this way: {reason}", reason)
        hidden_states, others = calls[index].hidden_states, given_back(index)
        flowing = {name: first[name] for name in handed_on.values() if name in first}
        for position, block in enumerate(runs):
            args, kwargs = calls[block].with_hidden_states(hidden_states, flowing)
            without = _without(intervention, sublayers) if position == silent else nullcontext()
            with without, as_its_own(stack.layers[block]):
                output = stack.layers[block](*args, **kwargs)
            hidden_states, others = block_output(output), beside_hidden_states(output)
            flowing |= {name: others[place] for place, name in handed_on.items() if others and place < len(others)}
        return with_beside(hidden_states, others)

    def forward_at(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            calls[index] = BlockCall(args, kwargs, {})
            if index == places[-1]:
                return run_all(index)
            return with_beside(calls[index].hidden_states, given_back(index))

        return forward

    with replaced_forwards({stack.layers[index]: forward_at(index) for index in places}) as as_its_own:
        return observation.batch.run(stack.model)


@contextmanager
def reordered_blocks(stack: BlockStack, order: Sequence[int]) -> Iterator[None]:
    """The model's blocks in another order inside the `with` block, and the lists of its configs with an entry for each.

    Args:
        stack: of the model.
        order: a permutation of the blocks' indices (from 0).
    """
    blocks = list(stack.layers)
    lists = [
        (config, name, value)
        for config in configs_in(stack.model)
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == len(blocks)
    ]
    try:
        for place, index in enumerate(order):
            stack.layers[place] = blocks[index]
        for config, name, value in lists:
            setattr(config, name, [value[index] for index in order])
        yield
    finally:
        for place, block in enumerate(blocks):
            stack.layers[place] = block
        for config, name, value in lists:
            setattr(config, name, value)


def _without(intervention: Intervention, sublayers: SublayerFinder) -> AbstractContextManager[object]:
    """Silence the sublayer that the first block of an intervention lacks, if there is one."""
    if intervention.silent is None:
        return nullcontext()
    return silenced(sublayers.branch(intervention.blocks[0], intervention.silent))
