"""The state of a module tree as a digest that another process computes too, where that can be."""

from __future__ import annotations

import hashlib
import logging
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rewriter.capture.code import code_digest, label, plain
from rewriter.capture.state import Snapshot

_LARGEST_CONSTANT = 1 << 20
# What diffusers notes down about a configuration for saving it, in the order of a set.
_NOTES = "_use_default_values"


class NotPortable(Exception):
    """A module tree that only this process can describe; the message says why."""


def portable_digest(snapshot: Snapshot) -> str:
    """The digest of all that a trace of the module tree reads but for the elements of its weights.

    Two processes get the same one where structure, weights' dtypes, shapes and strides, attributes, and the code that
    can be reached are the same. Raises NotPortable for a tree with adapters in it that a trace would record, and for
    one that holds what has no content to be compared: locks, open files, objects of C++.
    """
    if snapshot.branched:
        raise NotPortable("adapters are part of the graph")
    reader = _Reader(snapshot.opaque())
    # Code sees them, and the recorded types hold them.
    strides = repr([tensor.stride() for tensor in snapshot.weights])
    try:
        parts = [*reader.walk(snapshot.fingerprint), strides, code_digest(reader.code)]
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        # Objects may answer questions about themselves in any way.
        raise NotPortable(f"an object cannot be described: {type(error).__name__}: {error}") from error
    return hashlib.sha256("\0".join(parts).encode(errors="backslashreplace")).hexdigest()


class _Reader:
    """Writes a fingerprint as texts. `opaque`: the objects that it names by their ids; `code`: what it came by."""

    def __init__(self, opaque: Mapping[int, Any]) -> None:
        self.opaque = opaque
        self.code: list[Any] = []

    def walk(self, part: Any) -> Iterator[str]:
        if isinstance(part, tuple) and len(part) == 2 and part[0] == "is" and part[1] in self.opaque:
            yield from self.object(self.opaque[part[1]])
        elif type(part) is tuple and len(part) == 2 and part[0] in (_NOTES, (str, _NOTES)):
            return
        elif type(part) is tuple:
            items = [" ".join(self.walk(item)) for item in part]
            if len(part) == 2 and part[0] in (set, frozenset) and type(part[1]) is tuple:
                # The order of a set is another one in each process.
                items[1:] = sorted(" ".join(self.walk(item)) for item in part[1])
            yield f"({' '.join(items)})"
        elif isinstance(part, type | types.FunctionType):
            self.code.append(part)
            yield label(part)
        else:
            text = plain(part)
            if text is None:
                raise NotPortable(f"an attribute is a {label(type(part))}")
            yield text

    def object(self, value: Any) -> Iterator[str]:
        if isinstance(value, torch.Tensor):
            yield _content(value)
        elif isinstance(value, type | types.FunctionType):
            self.code.append(value)
            yield label(value)
            # What a function has closed over is the content of an object, and may be anything.
            if isinstance(value, types.FunctionType) and value.__closure__:
                for cell in value.__closure__:
                    yield from self.closed_over(cell.cell_contents)
        elif isinstance(value, types.BuiltinFunctionType | types.ModuleType):
            yield getattr(value, "__name__", label(value))
        elif isinstance(value, logging.Logger):
            yield value.name
        else:
            raise NotPortable(f"an attribute is a {label(type(value))}")

    def closed_over(self, value: Any) -> Iterator[str]:
        if isinstance(value, type | types.FunctionType):
            yield from self.object(value)
            return
        text = plain(value)
        if text is None:
            raise NotPortable(f"an attribute is a function that has closed over a {label(type(value))}")
        yield text


def _content(tensor: torch.Tensor) -> str:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) or tensor.layout is not torch.strided:
        raise NotPortable(f"an attribute is a {label(type(tensor))}")
    if tensor.is_meta or tensor.is_quantized or tensor.numel() * tensor.element_size() > _LARGEST_CONSTANT:
        raise NotPortable("an attribute is a large tensor that is no buffer")
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    described = (tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride())
    return f"{described} {hashlib.sha256(data).hexdigest()}"
