"""A digest of the Python code that a module's calls can reach, the same in every process that has this code.

Code is followed by name, from the forwards on: a function's globals, and the attributes that it names wherever one of
the classes met so far has a method of that name. What is reached through a dict, `getattr` or an object's type is not
followed, so an equal digest is a good reason to compare a kept graph with eager, and no proof.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch

# Named by their versions. What somebody else has put in the place of a function of theirs is noticed all the same.
_BY_VERSION = frozenset({"torch", "numpy", "triton", "huggingface_hub", "safetensors", "PIL"}) | sys.stdlib_module_names
_ENTRANCES = ("forward", "__call__", "__init__", "__post_init__", "__getattr__", "__getattribute__")
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    str,
    bytes,
    complex,
    range,
    slice,
    torch.Size,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
_DEEPEST = 8


def code_digest(roots: Iterable[Any]) -> str:
    """The digest of all that the functions and classes `roots` reach."""
    return _Reader().read(roots)


def label(item: Any) -> str:
    """The name under which a class or function can be found; for anything else that of its class."""
    named = item if hasattr(item, "__qualname__") else type(item)
    return f"{getattr(named, '__module__', None)}.{named.__qualname__}"


def plain(value: Any, depth: int = 0) -> str | None:
    """A text for a value that cannot be changed in place, or None where it is not of that kind."""
    if type(value) in _PLAIN:
        return repr(value)
    if isinstance(value, enum.Enum):
        return f"{label(type(value))}.{value.name}"
    if isinstance(value, tuple | frozenset) and depth < _DEEPEST:
        items = [plain(item, depth + 1) for item in value]
        known = [item for item in items if item is not None]
        if len(known) == len(items):
            return f"{type(value).__name__}({', '.join(sorted(known) if isinstance(value, frozenset) else known)})"
    return None


class _Reader:
    def __init__(self) -> None:
        self.lines: set[str] = set()
        self.pending: list[Any] = []
        self.met: dict[int, Any] = {}
        self.names: set[str] = set(_ENTRANCES)
        # For each class met: its members by name, with the base that each comes from.
        self.classes: list[dict[str, tuple[str, Any]]] = []

    def read(self, roots: Iterable[Any]) -> str:
        self.pending.extend(roots)
        while self.pending:
            item = self.pending.pop()
            if id(item) not in self.met:
                # Held here, so that no other object gets its id.
                self.met[id(item)] = item
                if isinstance(item, type):
                    self.class_(item)
                elif isinstance(item, types.FunctionType):
                    self.function(item)
                else:
                    self.lines.add(label(item))
        return hashlib.sha256("\n".join(sorted(self.lines)).encode()).hexdigest()

    def class_(self, kind: type) -> None:
        self.lines.add(f"class {label(kind)}({', '.join(map(label, kind.__mro__))})")
        members: dict[str, tuple[str, Any]] = {}
        for base in reversed(kind.__mro__):
            if not _by_version(base):
                members |= {name: (label(base), value) for name, value in vars(base).items()}
        self.classes.append(members)
        self.mentioned(members, self.names)

    def function(self, function: types.FunctionType) -> None:
        names: set[str] = set()
        body = hashlib.sha256(_body(function.__code__, names).encode()).hexdigest()
        given = plain((function.__defaults__, tuple((function.__kwdefaults__ or {}).items())))
        self.lines.add(f"function {label(function)} {body} {given}")
        for cell in function.__closure__ or ():
            try:
                self.found(f"{label(function)}, closure", cell.cell_contents)
            except ValueError:  # Nothing is in the cell yet.
                continue
        if _by_version(function):
            return
        globals_ = function.__globals__
        for name in names & globals_.keys():
            self.found(f"{function.__module__}.{name}", globals_[name])
            if isinstance(globals_[name], types.ModuleType):
                module = vars(globals_[name])
                for attribute in names & module.keys():
                    self.found(f"{globals_[name].__name__}.{attribute}", module[attribute])
        fresh = names - self.names
        self.names |= fresh
        for members in self.classes:
            self.mentioned(members, fresh)

    def mentioned(self, members: dict[str, tuple[str, Any]], names: set[str]) -> None:
        for name in members.keys() & names:
            owner, value = members[name]
            self.found(f"{owner}.{name}", value)

    def found(self, place: str, value: Any) -> None:
        """Code finds `value` under the name `place`."""
        followed = list(_followed(value))
        for item in followed:
            self.lines.add(f"{place} = {label(item)}")
        self.pending.extend(followed)
        if not followed:
            self.lines.add(f"{place} = {plain(value) or label(type(value))}")


def _followed(value: Any) -> Iterator[Any]:
    """The functions and classes behind a value."""
    if isinstance(value, type | types.FunctionType):
        yield value
    elif isinstance(value, staticmethod | classmethod | types.MethodType):
        yield from _followed(value.__func__)
    elif isinstance(value, property):
        yield from (part for part in (value.fget, value.fset) if part is not None)
    elif isinstance(value, functools.partial):
        yield from _followed(value.func)
    elif isinstance(value, functools.cached_property):
        yield value.func
    elif isinstance(value, functools._lru_cache_wrapper):
        yield from _followed(value.__wrapped__)
    elif isinstance(value, types.BuiltinFunctionType):
        yield value


def _by_version(item: Any) -> bool:
    return str(item.__module__).partition(".")[0] in _BY_VERSION


def _body(code: types.CodeType, names: set[str]) -> str:
    """What a function does, as text. Adds the names that it mentions to `names`."""
    names.update(code.co_names)
    constants = [
        _body(value, names) if isinstance(value, types.CodeType) else str(plain(value)) for value in code.co_consts
    ]
    # Local names, too: a keyword argument is one.
    return "\n".join((code.co_code.hex(), *code.co_names, *code.co_varnames, *code.co_freevars, *constants))
