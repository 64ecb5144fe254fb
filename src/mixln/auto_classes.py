"""Model types of this library in transformers' Auto classes, without importing transformers or any model.

`AutoConfig` looks a model type up in its `CONFIG_MAPPING`, and every other Auto class asks `AutoConfig` first, or is
given a config. So it is enough that this mapping imports the architectures when it is asked for a type of theirs, or
for all: they register themselves with all Auto classes then.
"""

from __future__ import annotations

import importlib
from collections import UserDict
from collections.abc import Iterator
from types import ModuleType

from mixln.errors import unsupported_transformers
from mixln.lazy import after_import

_PREFIX = "mixln_"


class _RegisteredTypes(UserDict[str, type]):
    """What has been registered with `AutoConfig`; this library's own model types come with the first question."""

    def __contains__(self, key: object) -> bool:
        if key not in self.data and isinstance(key, str) and key.startswith(_PREFIX):
            _import_architectures()
        return key in self.data

    def __iter__(self) -> Iterator[str]:
        _import_architectures()
        return iter(self.data)


def register_on_demand() -> None:
    """Make transformers' Auto classes know the architectures, whether transformers is imported already or later."""
    after_import("transformers.models.auto.configuration_auto", _extend)


def _extend(module: ModuleType) -> None:
    mapping = module.CONFIG_MAPPING
    if not hasattr(mapping, "_extra_content"):
        raise unsupported_transformers("CONFIG_MAPPING has no _extra_content")
    mapping._extra_content = _RegisteredTypes(mapping._extra_content)


def _import_architectures() -> None:
    importlib.import_module("mixln.models")
