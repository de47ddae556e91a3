"""What the trace recorded about a value: dtype, rank, device, extents and strides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

# Names that TorchScript types, rule files and torch itself use for one dtype: code is torch's number for it.
_SCALAR_NAMES = {
    "Double": "f64",
    "Float": "f32",
    "Half": "f16",
    "BFloat16": "bf16",
    "Float8_e4m3fn": "f8e4m3",
    "Float8_e5m2": "f8e5m2",
    "Long": "i64",
    "Int": "i32",
    "Short": "i16",
    "Char": "i8",
    "Byte": "u8",
    "Bool": "bool",
}
# c10::ScalarType numbers, as `aten::to` has them in a graph.
DTYPE_CODES = {
    "u8": 0,
    "i8": 1,
    "i16": 2,
    "i32": 3,
    "i64": 4,
    "f16": 5,
    "f32": 6,
    "f64": 7,
    "bool": 11,
    "bf16": 15,
    "f8e4m3": 24,
}


# What rule files call torch's dtypes.
DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8e4m3": torch.float8_e4m3fn,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}


@dataclasses.dataclass(frozen=True, slots=True)
class TensorFacts:
    """Facts about a tensor. dtype, rank and device hold for the whole capture, extents and strides for one shape."""

    dtype: str
    rank: int
    device: str
    shape: tuple[int, ...] | None
    strides: tuple[int, ...] | None

    @property
    def format(self) -> str | None:
        """`contiguous` or `channels_last`; None where neither holds or, because extents are 1, both."""
        if self.shape is None or self.strides is None or len(self.shape) != self.rank:
            return None
        orders = {"contiguous": list(range(self.rank))}
        if self.rank in (4, 5):
            orders["channels_last"] = [0, *range(2, self.rank), 1]
        found = [
            name
            for name, order in orders.items()
            if _in_order([self.shape[dim] for dim in order], [self.strides[dim] for dim in order])
        ]
        return found[0] if len(found) == 1 else None


def _in_order(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor is dense with its dimensions in their own order; the stride of an extent of 1 is free."""
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def facts_of_type(kind: Any) -> TensorFacts | None:
    """The facts in a TorchScript type; None where it is no tensor or the trace recorded too little."""
    if kind.kind() != "TensorType":
        return None
    dtype, rank, device = kind.scalarType(), kind.dim(), kind.device()
    if dtype is None or rank is None or device is None:
        return None
    sizes, strides = kind.sizes(), kind.strides()
    return TensorFacts(
        dtype=_SCALAR_NAMES.get(dtype, dtype),
        rank=rank,
        device=device.type,
        shape=_complete(sizes),
        strides=_complete(strides),
    )


def _complete(extents: list[int | None] | None) -> tuple[int, ...] | None:
    if extents is None or any(extent is None for extent in extents):
        return None
    return tuple(extent for extent in extents if extent is not None)
