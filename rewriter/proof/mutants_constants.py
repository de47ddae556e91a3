"""Other values that a constant of a program may have."""

from __future__ import annotations

from collections.abc import Iterator

from rewriter.language.kinds import Kind
from rewriter.language.syntax import Constant
from rewriter.ops.activation import ACTIVATIONS

_END = 2**63 - 1
# Of text arguments that are no activations.
_TEXTS = {"approximate": ("none", "tanh")}
# None may become one of these, by the name of the type.
_FOR_NONE: dict[str, tuple[Constant, ...]] = {
    "FloatType": (0.5,),
    "NumberType": (0.5,),
    "IntType": (2,),
    "ScalarTypeType": (7,),
    "MemoryFormatType": (2,),
}


def others(value: Constant, name: str, kind: Kind) -> list[Constant]:
    """Values other than `value` for the argument `name` of a type; the op may refuse some of them."""
    found: list[Constant] = []
    for other in _others(value, name, kind):
        if (type(other), other) != (type(value), value) and other not in found:
            found.append(other)
    return found


def _others(value: Constant, name: str, kind: Kind) -> Iterator[Constant]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (1, 2) if value == _END else _integers(value, name)
    elif isinstance(value, float):
        yield from (value + 0.5, value * 2, value + 0.02)
    elif isinstance(value, str):
        yield from _TEXTS.get(name, [each for each in ACTIVATIONS if each != "none"])
    elif value is None:
        # torch's own name for the type of a dtype is that of an integer.
        yield from _FOR_NONE["ScalarTypeType" if name == "dtype" else kind.name] if _may_be_given(name, kind) else ()
    else:
        yield from _lists(value)


def _may_be_given(name: str, kind: Kind) -> bool:
    return name == "dtype" or kind.name in _FOR_NONE


def _integers(value: int, name: str) -> Iterator[int]:
    if name.startswith("dim"):
        yield from (value + 1, value - 1, 0, 1)
    elif name == "dtype":
        # bf16, f16, f32, f64
        yield from (15, 5, 6, 7)
    else:
        yield from (value + 1, value * 3 + 2)


def _lists(value: tuple[Constant, ...]) -> Iterator[Constant]:
    """Two elements exchanged, the first and the last one more, the first -1 and 0: extents, dims, strides."""
    for index in range(len(value) - 1):
        yield (*value[:index], value[index + 1], value[index], *value[index + 2 :])
    numbers = [item for item in value if isinstance(item, int) and not isinstance(item, bool)]
    if value and len(numbers) == len(value):
        yield (numbers[0] + 1, *value[1:])
        yield tuple(number + 1 for number in numbers)
        yield tuple(number - 1 for number in numbers)
        yield tuple(0 for _ in numbers)
        yield tuple(-1 for _ in numbers)
