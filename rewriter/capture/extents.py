"""What the extents of a value in a trace are made from: extents of other values, and elements of some."""

from __future__ import annotations

from typing import Any

import torch

# What these say about a tensor does not depend on its elements. The first two say how large it is.
EXTENTS = frozenset({"aten::size", "aten::numel"})
METADATA = EXTENTS | {"aten::dim", "prim::device", "prim::dtype", "prim::Constant"}
# As many rows as there are elements of a kind.
_SIZED = frozenset(
    {
        "aten::nonzero",
        "aten::nonzero_numpy",
        "aten::argwhere",
        "aten::masked_select",
        "aten::bincount",
        "aten::_unique",
        "aten::_unique2",
        "aten::unique_dim",
        "aten::unique_consecutive",
        "aten::unique_dim_consecutive",
    }
)
# A tensor's element as a number, which may say how large another one is.
_NUMBERS = frozenset({"aten::Int", "aten::IntImplicit", "aten::ScalarImplicit", "aten::FloatImplicit", "aten::item"})
_ELEMENTWISE = frozenset(f"aten::{name}" for name in ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"))
# Results as large as the first operand, whatever the others are.
_AS_FIRST = frozenset(
    {
        *(f"aten::{name}" for name in ("copy", "fill", "index_fill", "index_put", "masked_fill", "masked_scatter")),
        *(f"aten::{name}" for name in ("scatter", "scatter_add", "index_add", "index_copy")),
    }
)


class Extents:
    """Of the values of one trace. What is found about a value holds for the rest of it."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, ...]] = {}

    def roots(self, value: Any) -> tuple[Any, ...]:
        """The values on whose elements the extents of `value` depend; none where these follow from other extents."""
        pending = [value]
        sizing: dict[int, list[Any] | None] = {}
        while pending:
            each = pending[-1]
            if each.unique() in self._found:
                pending.pop()
                continue
            if each.unique() not in sizing:
                sizing[each.unique()] = _sizing(each.node())
            operands = sizing[each.unique()]
            unknown = [operand for operand in operands or () if operand.unique() not in self._found]
            if unknown:
                pending.extend(unknown)
                continue
            if operands is None:
                self._found[each.unique()] = tuple(each.node().inputs())
            elif each.node().kind() in _ELEMENTWISE and any(self._settles(operand, each) for operand in operands):
                self._found[each.unique()] = ()
            else:
                found = {root.unique(): root for operand in operands for root in self._found[operand.unique()]}
                self._found[each.unique()] = tuple(found.values())
        return self._found[value.unique()]

    def _settles(self, operand: Any, result: Any) -> bool:
        """Whether the result is as large as this operand, which depends on no elements: the others have to fit."""
        return not self._found[operand.unique()] and _sizes(operand) == _sizes(result) is not None


def _sizing(node: Any) -> list[Any] | None:
    """The operands whose extents make those of a node's results; None where elements of its operands do."""
    kind, operands = node.kind(), list(node.inputs())
    if kind in _NUMBERS:
        return _sizes_in(operands[0])
    if _sized_by_elements(kind, operands):
        return None
    if kind in METADATA and kind not in EXTENTS:
        return []
    return operands[:1] if kind.removesuffix("_") in _AS_FIRST else operands


def _sizes_in(number: Any) -> list[Any] | None:
    """The sizes that a number is computed from; None where the elements of a tensor have a part in it."""
    found: list[Any] = []
    pending, met = [number], set[int]()
    while pending:
        value = pending.pop()
        kind = value.node().kind()
        if value.unique() in met or (kind in METADATA and kind not in EXTENTS):
            continue
        met.add(value.unique())
        if kind == "prim::Param":
            return None
        if kind in EXTENTS:
            found.append(value)
        else:
            pending.extend(value.node().inputs())
    return found


def _sized_by_elements(kind: str, operands: list[Any]) -> bool:
    if kind in _SIZED:
        return True
    if kind == "aten::where":
        return len(operands) == 1
    if kind == "aten::index":
        return any(_dtype(index) in (torch.bool, torch.uint8) for index in operands[1].node().inputs())
    if kind == "aten::one_hot":
        # Without a number of classes it is that of the largest index.
        return bool(operands[1].toIValue() == -1)
    if kind == "aten::repeat_interleave":
        # The last operand is the size of the result, where the caller knows it.
        counts = operands[0] if len(operands) == 2 else operands[1]
        return bool(counts.type().kind() == "TensorType" and operands[-1].type().kind() == "NoneType")
    return bool(kind == "aten::tensor_split" and operands[1].type().kind() == "TensorType")


def _sizes(value: Any) -> list[int] | None:
    kind = value.type()
    return kind.sizes() if kind.kind() == "TensorType" else None


def _dtype(value: Any) -> torch.dtype | None:
    kind = value.type()
    return kind.dtype() if kind.kind() == "TensorType" else None
