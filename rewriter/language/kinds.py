"""The types that schemas give operands and results, read once: torch's own type objects are slow to ask."""

from __future__ import annotations

import dataclasses
from typing import Any

from rewriter.language.syntax import Computed, Literal, Operand, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A type. `name`: torch's name such as `IntType`, without Optional; `element`: of a list; `ir`: torch's own."""

    name: str
    optional: bool
    element: Kind | None
    text: str
    ir: Any = dataclasses.field(compare=False, repr=False)

    @classmethod
    def of(cls, ir: Any) -> Kind:
        inner = ir.getElementType() if ir.kind() == "OptionalType" else ir
        name = inner.kind()
        element = cls.of(inner.getElementType()) if name == "ListType" else None
        return cls(name, inner is not ir, element, ir.annotation_str, ir)

    @property
    def required(self) -> Any:
        """Torch's type without Optional."""
        return self.ir.getElementType() if self.optional else self.ir


# In which types a constant of Python's type can stand.
_SCALAR_KINDS: dict[type, tuple[str, ...]] = {
    bool: ("BoolType", "NumberType"),
    int: ("IntType", "FloatType", "NumberType", "SymIntType", "ScalarTypeType", "LayoutType", "MemoryFormatType"),
    float: ("FloatType", "NumberType"),
    str: ("StringType", "DeviceObjType"),
}


def accepts(kind: Kind, operand: Operand) -> bool:
    """Whether an operand can stand where a schema has this type. A name always can: its type is not known yet."""
    if isinstance(operand, Literal):
        return _accepts_constant(kind, operand)
    if isinstance(operand, Sequence):
        return kind.element is not None and all(accepts(kind.element, item) for item in operand.items)
    if isinstance(operand, Computed):
        return kind.name in _SCALAR_KINDS[int]
    return True


def _accepts_constant(kind: Kind, literal: Literal) -> bool:
    value = literal.value
    if value is None:
        return kind.optional or kind.name in ("NoneType", "AnyType")
    if kind.name == "AnyType":
        return True
    if isinstance(value, tuple):
        return kind.element is not None and all(_accepts_constant(kind.element, Literal(item)) for item in value)
    return kind.name in _SCALAR_KINDS.get(type(value), ())


def typed(kind: Kind, operand: Operand) -> Operand:
    """`1` where the schema has a float means `1.0`."""
    if kind.name == "FloatType" and isinstance(operand, Literal) and type(operand.value) is int:
        return Literal(float(operand.value))
    return operand
