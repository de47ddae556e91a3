"""What a rule may ask of its operands, its GPU and its test inputs, as data."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable

from rewriter.language.expressions import Expression
from rewriter.language.syntax import Constant

DTYPES = ("f64", "f32", "f16", "bf16", "f8e4m3", "f8e5m2", "i64", "i32", "i16", "i8", "u8", "bool")
FORMATS = ("contiguous", "channels_last", "not channels_last")
DEVICES = ("cpu", "cuda")
LAYOUTS = ("contiguous", "channels_last", "sliced", "offset", "expanded", "permuted")
VALUE_CLASSES = ("normal", "large_mean", "large_magnitude", "subnormal", "constant", "nan_inf")
PHASES = ("canonicalise", "layout", "merge", "fuse", "lower", "quantise")
# What a replacement may keep of an operand: rows in eight bits with a scale each, or its products summed in f16 or in
# fixed point.
LOSSES = ("f8e4m3", "f8e4m3_norm", "f8e4m3_sums", "i8", "f16_sums")
SAVINGS = ("time", "memory")

_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON = re.compile(r"(>=|<=|==|>|<)\s*(\d{1,9})", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """A bound such as `>=2`."""

    symbol: str
    bound: int

    @classmethod
    def parse(cls, text: object) -> Comparison | None:
        if isinstance(text, int) and not isinstance(text, bool):
            return cls("==", text) if 0 <= text < 10**9 else None
        match = _COMPARISON.fullmatch(text.strip()) if isinstance(text, str) else None
        return cls(match[1], int(match[2])) if match else None

    def holds(self, value: int) -> bool:
        return _COMPARISONS[self.symbol](value, self.bound)

    def __str__(self) -> str:
        return f"{self.symbol}{self.bound}"


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """Extents as expressions. `ellipsis` is the place of `...` among them, or None."""

    extents: tuple[Expression, ...]
    ellipsis: int | None

    def aligned(self, rank: int) -> list[tuple[Expression, int]] | None:
        """Pairs of expression and dimension index for a tensor of this rank, or None if the rank cannot fit."""
        count = len(self.extents)
        if self.ellipsis is None:
            return list(zip(self.extents, range(rank), strict=True)) if count == rank else None
        if rank < count:
            return None
        head, tail = self.extents[: self.ellipsis], self.extents[self.ellipsis :]
        return [*zip(head, range(len(head)), strict=True), *zip(tail, range(rank - len(tail), rank), strict=True)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What `where` asks of one operand. An empty or None field asks nothing."""

    dtype: tuple[str, ...] = ()
    rank: tuple[int, ...] = ()
    shape: Shape | None = None
    values: tuple[Constant, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    const: bool = False
    weight: bool | None = None
    format: str | None = None
    device: tuple[str, ...] = ()
    count: Comparison | None = None
    uses: Comparison | None = None
    dtype_equals: str | None = None
    present: bool | None = None

    @property
    def pins(self) -> bool:
        """Whether it leaves one value only."""
        return self.present is False or (self.values is not None and len(self.values) == 1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorInput:
    """How the rule's test draws a tensor operand. Empty `layouts`, `dtype` or `values` are all that fit the rule."""

    shape: tuple[Expression, ...]
    dtype: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    optional: bool = False
    values: tuple[str, ...] = ()
    count: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ScalarInput:
    """How the rule's test draws a number, text, flag or list: one of the choices."""

    choices: tuple[Constant | Expression, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class DimRange:
    """The extents that a symbol takes in tests: every integer from `low` to `high`, or the listed ones."""

    choices: tuple[int, ...] = ()
    low: int = 0
    high: int = 0


Input = TensorInput | ScalarInput
