"""`Placement`: a scheme with its options and modifiers, its text form, and the stack it plans.

Text form:  scheme[(option=value, ...)] [+ modifier[(option=value, ...)]] ...
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mixln.placement.plan import PlacementError, StackPlan
from mixln.placement.registry import MODIFIERS, SCHEMES, Entry, Option
from mixln.placement.words import unknown

_TERM = re.compile(r"\s*(?P<name>\w+)\s*(?:\((?P<options>[^()]*)\)\s*)?(?P<end>\+|$)")
_OPTION = re.compile(r"\s*(?P<name>\w+)\s*=\s*(?P<value>[^\s=]+)\s*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_MOST_LAYERS = 10_000
"""Ten times the deepest stack that has been trained (DeepNorm, 1,000 layers)."""


@dataclass(frozen=True)
class Term:
    """A scheme or a modifier with its options, as they stand between two `+` of a placement's text form."""

    name: str
    options: Mapping[str, Option]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.options.items())))

    def __reduce__(self) -> tuple[type[Term], tuple[str, dict[str, Option]]]:
        # a read-only mapping cannot be copied or pickled as it is
        return Term, (self.name, dict(self.options))

    def __str__(self) -> str:
        options = ", ".join(f"{name}={_print_value(value)}" for name, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


@dataclass(frozen=True)
class Placement:
    """Where the norms of a transformer stand: one scheme, then any modifiers.

    Two placements are equal if they have the same text form, with the options that a bare name stands for: `mix` is
    `mix(alpha=0.25)`. `StackPlan.same_function_as` tells whether two of them compute the same function.

    Examples:
        >>> placement = Placement.parse("mix(alpha=0.25)+scaled_init")
        >>> str(placement)
        'mix(alpha=0.25)+scaled_init'
        >>> len(placement.plan(12).blocks)
        12
    """

    scheme: Term
    modifiers: tuple[Term, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Placement:
        """Read a placement from its text form.

        Raises:
            PlacementError: the text does not have that form, or names an unknown scheme, modifier or option (the error
                lists the valid ones), or gives an option a value outside its range.
        """
        if not isinstance(text, str):
            raise PlacementError(f"a placement is a text such as 'mix(alpha=0.25)', not {text!r}")
        (scheme_name, scheme_options), *rest = _split(text)
        if scheme_name in MODIFIERS:
            raise PlacementError(
                f"placement {text!r}: {scheme_name!r} is a modifier: put a scheme before it, as in 'pre+{scheme_name}'"
            )
        scheme = _check(scheme_name, scheme_options, SCHEMES, "scheme", text)
        modifiers = tuple(_check(name, options, MODIFIERS, "modifier", text) for name, options in rest)
        names = [modifier.name for modifier in modifiers]
        if len(set(names)) < len(names):
            raise PlacementError(f"placement {text!r}: the same modifier stands in it twice")
        # the scheme itself says which options go together; in so tall a stack it refuses only what is wrong for every L
        SCHEMES[scheme.name].function(1, 10**9, **scheme.options)
        return cls(scheme, modifiers)

    def __str__(self) -> str:
        return "+".join(str(term) for term in (self.scheme, *self.modifiers))

    def plan(
        self, num_layers: int, *, depths: Sequence[int] | None = None, original_num_layers: int | None = None
    ) -> StackPlan:
        """Return the plan of a stack of `num_layers` blocks.

        Args:
            num_layers: the number of blocks in the stack.
            depths: for a stack from which blocks were removed: the original depth l (from 1) of each remaining block.
            original_num_layers: and the original L.

        Raises:
            PlacementError: there are no layers or too many, the depths do not fit, or the scheme refuses.
        """
        total = num_layers if original_num_layers is None else original_num_layers
        depths = range(1, num_layers + 1) if depths is None else depths
        if num_layers < 1:
            raise PlacementError(f"a stack needs at least 1 layer, not {num_layers}")
        if num_layers > _MOST_LAYERS:  # a slip in a config, which would cost minutes and gigabytes
            raise PlacementError(f"num_hidden_layers is {num_layers:,}: a stack has at most {_MOST_LAYERS:,} layers")
        ascending = all(before < after for before, after in itertools.pairwise(depths))
        if len(depths) != num_layers or depths[0] < 1 or depths[-1] > total or not ascending:
            raise PlacementError(
                f"the depths {list(depths)} are not {num_layers} ascending numbers of layers from 1 to {total}"
            )
        entry = SCHEMES[self.scheme.name]
        plan = StackPlan(
            blocks=tuple(entry.function(depth, total, **self.scheme.options) for depth in depths),
            num_layers=total,
            embedding_norm=entry.embedding_norm,
            final_norm=entry.final_norm,
            head_bias=entry.head_bias,
        )
        for modifier in self.modifiers:
            plan = MODIFIERS[modifier.name].function(plan, **modifier.options)
        return plan


def _split(text: str) -> list[tuple[str, dict[str, Option]]]:
    terms: list[tuple[str, dict[str, Option]]] = []
    position, expects_more = 0, True
    while expects_more:
        match = _TERM.match(text, position)
        if match is None:
            raise PlacementError(
                f"placement {text!r} cannot be read from {text[position:]!r} on. "
                "Write scheme(option=value, ...)+modifier, for example 'mix(alpha=0.25)+scaled_init'"
            )
        terms.append((match["name"], _read_options(match["options"], text)))
        position, expects_more = match.end(), match["end"] == "+"
    return terms


def _read_options(text: str | None, placement: str) -> dict[str, Option]:
    options: dict[str, Option] = {}
    for part in text.split(",") if text and text.strip() else []:
        match = _OPTION.fullmatch(part)
        if match is None:
            raise PlacementError(f"placement {placement!r}: {part.strip()!r} is not of the form option=value")
        if match["name"] in options:
            raise PlacementError(f"placement {placement!r}: option {match['name']!r} stands in it twice")
        options[match["name"]] = _read_value(match["value"])
    return options


def _read_value(text: str) -> Option:
    if text in ("true", "false"):
        return text == "true"
    if _NUMBER.fullmatch(text) and len(text) <= 40:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return text


def _print_value(value: Option) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


def _check(name: str, options: Mapping[str, Option], registry: Mapping[str, Entry], what: str, text: str) -> Term:
    if name not in registry:
        known = unknown(what, name, registry)
        raise PlacementError(
            f"placement {text!r}: {known}. One of your own is known once the file that registers it is loaded: "
            "mixln.load_plugin(FILE) in Python, --plugin FILE on the command line"
        )
    return Term(name, registry[name].check_options(options))
