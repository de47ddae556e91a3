"""Describes what lies in a module's attributes, by content, for comparison with another moment."""

from __future__ import annotations

import enum
import operator
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

import torch

from rewriter.capture.structure import CONSTANTS
from rewriter.capture.watching import Watch, version

_SCALARS = (*CONSTANTS, int, slice)
_OPAQUE = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MethodType, weakref.ref)
_DEEPEST = 12
# Any class has this: where its instances cannot be called, that of its own class.
call_of = operator.attrgetter("__call__")
_MOST_OBJECTS = 50_000


class Describer:
    """Turns values into nested tuples that are equal where a trace would read the same.

    order: the number of each module by id. watch: is told of every container that is looked into.
    constants: tensors that no module registers, which a trace bakes in.
    callables: the classes of objects that may be called, such as attention processors.
    """

    def __init__(self, order: Mapping[int, int], watch: Watch) -> None:
        self.constants: list[torch.Tensor] = []
        self.callables: dict[type, Any] = {}
        self._order, self._watch = order, watch
        self._described: dict[int, Any] = {}
        self._pins: list[Any] = []

    def describe(self, value: Any) -> Any:
        return self._walk(value, 0)

    def opaque(self) -> dict[int, Any]:
        """The objects that descriptions name by their ids."""
        return {id(value): value for value in self._pins}

    def _pin(self, value: Any) -> tuple[str, int]:
        # The reference keeps the id from being given to another object.
        self._pins.append(value)
        return ("is", id(value))

    def _walk(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _SCALARS:
            return (kind, value)
        if kind is float:
            return (kind, repr(value))
        if isinstance(value, enum.Enum):
            return (kind, value.name)
        if isinstance(value, torch.nn.Module) and id(value) in self._order:
            return ("module", self._order[id(value)])
        if isinstance(value, torch.Tensor):
            # A tensor that no module registers is baked into a trace.
            self.constants.append(value)
            return (self._pin(value), version(value))
        if isinstance(value, _OPAQUE) or depth > _DEEPEST or len(self._described) > _MOST_OBJECTS:
            return self._pin(value)
        if id(value) in self._described:
            return self._described[id(value)]
        self._pins.append(value)
        self._described[id(value)] = ("inside itself", kind)
        self._described[id(value)] = description = self._container(value, kind, depth + 1)
        return description

    def _container(self, value: Any, kind: type, depth: int) -> Any:
        if isinstance(value, dict):
            self._watch.size(value)
            self._watch.items(value)
            items = tuple((self._walk(key, depth), self._walk(item, depth)) for key, item in value.items())
            # A subclass of dict (diffusers' FrozenDict) repeats its content as attributes.
            plain = kind in (dict, OrderedDict) or not getattr(value, "__dict__", None)
            return (kind, items, () if plain else self._attributes(value, depth))
        if isinstance(value, list | tuple | set | frozenset | deque):
            if not isinstance(value, tuple | frozenset):
                self._watch.size(value)
                self._watch.items(value)
            items = tuple(self._walk(item, depth) for item in value)
            return (kind, items)
        if hasattr(value, "__dict__") and not _foreign(kind):
            return (_qualified(kind), self._pin(kind), self._call(kind), self._attributes(value, depth))
        return self._pin(value)

    def _call(self, kind: type) -> Any:
        """What runs where an instance is called; None where that is nothing in Python."""
        call = call_of(kind)
        if not isinstance(call, types.FunctionType):
            return None
        self.callables[kind] = call
        return call

    def _attributes(self, value: Any, depth: int) -> tuple[Any, ...]:
        attributes = value.__dict__
        self._watch.size(attributes)
        self._watch.items(attributes)
        return tuple((name, self._walk(item, depth)) for name, item in sorted(attributes.items(), key=name_of))


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def name_of(item: tuple[Any, Any]) -> str:
    return str(item[0])


def _foreign(kind: type) -> bool:
    """Classes whose instances are not a module's state: locks, loggers, code of the standard library."""
    return kind.__module__.partition(".")[0] in {"_thread", "threading", "logging", "builtins", "functools", "rewriter"}
