"""Notices where traced code leaves the graph: a tensor turned into a Python value that steers or enters the code.

`torch.jit.trace` bakes such a value in. Where the tensor is a shape, the trace holds for the shapes on which the
decision falls the same way; where it is data, the trace holds for nothing but the example.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from rewriter import torch_ir
from rewriter.capture.extents import EXTENTS, METADATA, Extents

_CONVERSIONS = frozenset(
    {
        "__bool__",
        "__int__",
        "__float__",
        "__complex__",
        "__index__",
        "__contains__",
        "item",
        "tolist",
        "numpy",
        "__array__",
        "equal",
        "allclose",
        "is_nonzero",
        "tensor",
        "as_tensor",
    }
)


class Escapes(TorchFunctionMode):
    """Active while a module is traced. `inputs`: the graph's first inputs; those that follow are weights.

    data: position of an input -> the place in the code where its elements became a Python value.
    weights: place where a weight's elements did, or None. shapes: whether any extent did.
    """

    def __init__(self, inputs: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._positions = {torch_ir.traced_value(tensor).unique(): index for index, tensor in enumerate(inputs)}
        self._extents = Extents()
        # Values that were followed to what they are made from.
        self._followed: set[int] = set()
        self.data: dict[int, str] = {}
        self.weights: str | None = None
        self.shapes = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _CONVERSIONS:
            for tensor in _tensors(args[:2]):
                if name not in ("tensor", "as_tensor") or tensor is not args[0]:
                    self._record([torch_ir.traced_value(tensor)])
        elif name == "__len__" or (name == "unbind" and args and args[0].dim() == 1):
            # A loop over a tensor is one over what `unbind` gives. That of more dimensions is mostly another than the
            # first, such as q, k and v.
            self.shapes = self.shapes or name == "__len__"
            self._record(self._extents.roots(torch_ir.traced_value(args[0])))
        return func(*args, **(kwargs or {}))

    def _record(self, values: Iterable[Any]) -> None:
        """Notes what the elements of these values are made from."""
        pending = list(values)
        while pending:
            value = pending.pop()
            if value.unique() in self._followed:
                continue
            self._followed.add(value.unique())
            kind = value.node().kind()
            position = self._positions.get(value.unique())
            if position is not None:
                self.data.setdefault(position, _place())
            elif kind == "prim::Param":
                self.weights = self.weights or _place()
            elif kind in METADATA:
                self.shapes = self.shapes or kind != "prim::Constant"
                pending.extend(self._extents.roots(value) if kind in EXTENTS else ())
            else:
                pending.extend(value.node().inputs())


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _place() -> str:
    """The innermost line of code that is neither torch's nor this package's, as `file.py:12 in function`."""
    for frame in reversed(traceback.extract_stack()):
        parts = frame.filename.replace("\\", "/").split("/")
        if "torch" not in parts and not {"rewriter", "capture"} <= set(parts[-3:]):
            return f"{parts[-1]}:{frame.lineno} in {frame.name}"
    return "an unknown place"
