"""Objects that a call may return beside plain containers: all that they are lies in their attributes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

# Caches of keys and values, which decoders return whether they are asked to or not. Whoever has one has imported the
# module; classes derived from these are not meant, for they may keep more than their attributes show.
_CLASSES = {"transformers.cache_utils": ("DynamicCache", "DynamicLayer")}


def is_known(kind: type) -> bool:
    """Whether an object of exactly this class can be taken apart into its attributes and put together from them."""
    names = _CLASSES.get(kind.__module__, ())
    return kind.__name__ in names and getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind


def put_together(kind: type, attributes: Mapping[str, Any]) -> Any:
    """An object of a known class with these attributes, as unpickling makes it: without a call of its constructor."""
    made: Any = object.__new__(kind)
    vars(made).update(attributes)
    return made
