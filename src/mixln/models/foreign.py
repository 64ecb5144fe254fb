"""What goes wrong inside a model whose code is not ours, as one line that says where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mixln.errors import InputError
from mixln.system_errors import exhaustion


class ModelCallError(InputError):
    """The forward of a model, or of one of its blocks, failed; `__cause__` is what it raised.

    Attributes:
        reason: that error, in one line.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def naming_failures(what: str, advice: str = "Give input that it takes") -> Iterator[None]:
    """Turn whatever a model's own code raises inside the `with` block into one line.

    Args:
        what: failed, such as "a BloomForCausalLM cannot be run on this input".
        advice: to the user.

    Raises:
        ModelCallError: instead of what was raised, but for this library's own errors and what the machine refuses.
    """
    try:
        yield
    except Exception as error:
        # a pipe breaks when the reader of what a model says has enough of it
        if isinstance(error, InputError | BrokenPipeError) or exhaustion(error) is not None:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.') or 'without a reason'}"
        raise ModelCallError(f"{what} ({reason}). {advice}", reason) from error
