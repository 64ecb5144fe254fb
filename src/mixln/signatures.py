"""The signatures of public functions: types by which their arguments are checked, and read from a command line."""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, ParamSpec, TypeVar

from mixln.checked import Conversion

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def checked_arguments(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Make a function refuse arguments of other types than it is annotated with, as configurations do.

    Types that a module imports for type checkers alone are not looked at.

    Raises:
        InputError: by the function, when it is called: names the parameter, and what it must be.
    """

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        hints = parameter_types(function)
        bound = inspect.signature(function).bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if bound.signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                Conversion().convert(hints[name], value, f"`{name}`")
        return function(*args, **kwargs)

    return checked


@cache
def parameter_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of the parameters of a function.

    A name that its module imports for type checkers alone, since it is heavy, stands for `Any`.
    """
    names = _Names({**vars(builtins), **vars(sys.modules[function.__module__])})
    found = {name: one.annotation for name, one in inspect.signature(function).parameters.items()}
    return {name: eval(hint, {}, names) if isinstance(hint, str) else hint for name, hint in found.items()}


class _Names(dict[str, Any]):
    """The names of a module, and of nothing else."""

    def __missing__(self, name: str) -> Any:
        return Any
