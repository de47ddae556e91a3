"""Takes nested Python values apart into tensors, numbers and a hashable structure, and puts them together again."""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rewriter.capture.objects import is_known, put_together
from rewriter.errors import CaptureError

# A structure is a nested tuple whose first item says what it describes:
#   ("tensor", index) | ("number", index, type) | ("constant", type, value) | ("sequence", class, children)
#   | ("mapping", class, keys, children) | ("record", class, field names, children)
#   | ("object", class, attribute names, children)
# It is both half of a capture's key and the recipe for putting a value together.
Structure = tuple[Any, ...]

# What is compared by its value and never changes.
CONSTANTS = (
    type(None),
    bool,
    str,
    bytes,
    complex,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    torch.Size,
    range,
)
_NUMBERS = (int, float)
_CONTAINERS = ("sequence", "mapping", "record", "object")
_LARGEST_INT = 2**63


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flat:
    """A value taken apart: `structure` refers to `tensors` and `numbers` by index.

    A tensor that occurs twice is listed once, so the structure also says which places share one tensor.
    """

    structure: Structure
    tensors: tuple[torch.Tensor, ...]
    numbers: tuple[int | float, ...]


class _Flattener:
    def __init__(self, what: str, *, objects: bool = False) -> None:
        self.what, self._objects = what, objects
        self.tensors: list[torch.Tensor] = []
        self.numbers: list[int | float] = []
        self._index_of: dict[int, int] = {}
        self._open: set[int] = set()

    def walk(self, value: Any, path: str) -> Structure:
        kind = type(value)
        if kind in CONSTANTS:
            return ("constant", kind, value)
        if kind in _NUMBERS:
            if kind is int and not -_LARGEST_INT <= value < _LARGEST_INT:
                return ("constant", kind, value)
            self.numbers.append(value)
            return ("number", len(self.numbers) - 1, kind)
        if isinstance(value, torch.Tensor):
            index = self._index_of.setdefault(id(value), len(self.tensors))
            if index == len(self.tensors):
                self.tensors.append(value)
            return ("tensor", index)
        if isinstance(value, enum.Enum) or (self._objects and isinstance(value, type) and is_known(value)):
            return ("constant", kind, value)
        if id(value) in self._open:
            raise CaptureError(f"{self.what} {path} contains itself")
        self._open.add(id(value))
        try:
            return self._container(value, path, kind)
        finally:
            self._open.discard(id(value))

    def _container(self, value: Any, path: str, kind: type) -> Structure:
        if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(kind, "_fields")):
            return ("sequence", kind, tuple(self.walk(item, f"{path}[{index}]") for index, item in enumerate(value)))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = dataclasses.fields(value)
            if all(field.init for field in fields) and set(vars(value)) <= {field.name for field in fields}:
                names = tuple(field.name for field in fields)
                children = tuple(self.walk(getattr(value, name), f"{path}.{name}") for name in names)
                return ("record", kind, names, children)
        elif kind in (dict, OrderedDict):
            for key in value:
                if type(key) not in (str, int, bool, type(None)):
                    raise CaptureError(
                        f"{self.what} {path} has a key of type {type(key).__name__}; expected str or int keys"
                    )
            children = tuple(self.walk(item, f"{path}[{key!r}]") for key, item in value.items())
            return ("mapping", kind, tuple(value), children)
        elif self._objects and is_known(kind):
            children = tuple(self.walk(item, f"{path}.{name}") for name, item in vars(value).items())
            return ("object", kind, tuple(vars(value)), children)
        raise CaptureError(
            f"{self.what} {path} is a {kind.__module__}.{kind.__qualname__}, which a graph cannot hold; expected "
            "tensors, numbers, strings, None, dtypes, devices, and lists, tuples, dicts or output dataclasses of these"
        )


def flatten(value: Any, *, what: str, path: str = "", objects: bool = False) -> Flat:
    """Takes `value` apart. `what` and `path` name it in errors ("argument", "sample").

    objects: whether it may hold known objects, as what a call returns may; those among arguments a call may change.

    Raises CaptureError for an object that is neither a tensor, a constant, a container nor a dataclass of these.
    """
    flattener = _Flattener(what, objects=objects)
    structure = flattener.walk(value, path)
    return Flat(structure=structure, tensors=tuple(flattener.tensors), numbers=tuple(flattener.numbers))


def flatten_arguments(arguments: dict[str, Any]) -> Flat:
    """Takes a call's arguments apart; the structure is a mapping from parameter name to argument."""
    flattener = _Flattener("argument")
    children = tuple(flattener.walk(value, name) for name, value in arguments.items())
    structure = ("mapping", dict, tuple(arguments), children)
    return Flat(structure=structure, tensors=tuple(flattener.tensors), numbers=tuple(flattener.numbers))


def unflatten(structure: Structure, tensors: Sequence[Any], numbers: Sequence[Any]) -> Any:
    """The value that `structure` describes, with new containers around the given tensors and numbers."""
    tag = structure[0]
    if tag == "tensor":
        return tensors[structure[1]]
    if tag == "number":
        return numbers[structure[1]]
    if tag == "constant":
        return structure[2]
    kind, children = structure[1], [unflatten(child, tensors, numbers) for child in structure[-1]]
    if tag == "sequence":
        return kind(*children) if hasattr(kind, "_fields") else kind(children)
    named = dict(zip(structure[2], children, strict=True))
    if tag == "object":
        return put_together(kind, named)
    return kind(**named) if tag == "record" else kind(named)


def difference(found: Structure, expected: Structure, path: str = "") -> tuple[str, str, str] | None:
    """Where two structures first differ, such as `.sample`, and what each has there in words; None if they do not."""
    if found == expected:
        return None
    if found[0] in _CONTAINERS and found[:-1] == expected[:-1] and len(found[-1]) == len(expected[-1]):
        names = range(len(found[-1])) if found[0] == "sequence" else found[2]
        form = ".{}" if found[0] in ("record", "object") else "[{!r}]"
        for name, one, other in zip(names, found[-1], expected[-1], strict=True):
            if (inside := difference(one, other, path + form.format(name))) is not None:
                return inside
    return path or "the result", _in_words(found), _in_words(expected)


def _in_words(structure: Structure) -> str:
    tag, what = structure[:2]
    if tag == "constant":
        return repr(structure[2])
    if tag == "sequence":
        return f"a {what.__name__} of {len(structure[2])}"
    if tag == "mapping":
        return f"a {what.__name__} of {', '.join(map(repr, structure[2]))}"
    return f"a {what.__name__}" if tag in _CONTAINERS else f"{tag} {what}"


def number_paths(structure: Structure, path: str = "") -> Iterator[str]:
    """The places of the numbers in `structure`, in index order, such as `cross_attention_kwargs['scale']`."""
    tag = structure[0]
    if tag == "number":
        yield path
    elif tag == "sequence":
        for index, child in enumerate(structure[2]):
            yield from number_paths(child, f"{path}[{index}]")
    elif tag in ("mapping", "record"):
        for name, child in zip(structure[2], structure[3], strict=True):
            yield from number_paths(child, f"{path}[{name!r}]" if path else str(name))


def tensor_class(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What a capture assumes of an activation: dtype, device, rank, and whether it lies channels-last. Not its extents.

    Apart from that flag nothing is promised about strides: a tensor of the same class may be sliced or expanded.
    """
    channels_last = False
    rank = tensor.dim()
    if rank in (4, 5) and not tensor.is_contiguous():
        layout = torch.channels_last if rank == 4 else torch.channels_last_3d
        channels_last = tensor.is_contiguous(memory_format=layout)
    return (tensor.dtype, tensor.device, rank, channels_last)
