"""Chooses the overload of an op that takes the operands a replacement has at hand."""

from __future__ import annotations

import dataclasses

from rewriter.graph.view import NotConstant, Value
from rewriter.language.kinds import Kind, accepts
from rewriter.language.rule import Call
from rewriter.language.syntax import Constant, Literal

# Types without parameters: equal names mean equal types.
_PLAIN = frozenset(("TensorType", "IntType", "FloatType", "BoolType", "StringType", "DeviceObjType"))


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """A constant that the graph does not have yet."""

    value: Constant


# An operand of a new node; the elements of a list that is still to be made.
Supply = Value | Known | list["Supply"]


def takes(call: Call, supplies: list[Supply]) -> bool:
    """Whether the overload takes these operands."""
    return all(admits(kind, supply) for kind, supply in zip(call.types, supplies, strict=True))


def admits(kind: Kind, supply: Supply) -> bool:
    """Whether a schema's type takes this operand, as it is or as a constant written in another way."""
    if isinstance(supply, Known):
        return accepts(kind, Literal(supply.value))
    if isinstance(supply, list):
        return kind.element is not None and all(admits(kind.element, item) for item in supply)
    return fits(kind, supply) or converted(kind, supply) is not None


def fits(kind: Kind, value: Value) -> bool:
    """Whether a schema's type takes this value as it is."""
    name = value.kind
    if name in _PLAIN and name == kind.name:
        return True
    if name == "NoneType":
        return kind.optional or kind.name in ("NoneType", "AnyType")
    return bool(value.ir.type().isSubtypeOf(kind.ir))


def converted(kind: Kind, value: Value) -> Known | None:
    """The number that a constant value stands for, where a schema wants another form of it: 1 for 1.0, or a tensor."""
    constant = value.constant
    if isinstance(constant, NotConstant) or fits(kind, value):
        return None
    if isinstance(constant, bool) or not isinstance(constant, int | float) or kind.name == "TensorType":
        return None
    return Known(constant) if accepts(kind, Literal(constant)) else None
