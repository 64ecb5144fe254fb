"""What goes wrong between here and the Hugging Face hub."""

from __future__ import annotations

from huggingface_hub.errors import HfHubHTTPError

# The HTTP client's own base error, first base of the hub's: httpx or httpx2, by the hub library's version.
_HTTP_ERROR: type = HfHubHTTPError.__bases__[0]
assert issubclass(_HTTP_ERROR, Exception)

HUB_ERRORS: tuple[type[Exception], ...] = (OSError, _HTTP_ERROR)
"""No network, a timeout, an HTTP error, a repository or file that is not there."""
