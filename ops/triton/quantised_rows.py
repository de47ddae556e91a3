"""Rows in eight bits with a scale each, made by one pass that holds a row in registers: of a tensor as it is, and of an
activation, a gate or a concatenation before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from rewriter.ops.activation import ACTIVATIONS
from rewriter.ops.low_precision import FORMATS
from rewriter.ops.registry import provide
from rewriter.ops.triton.device import INTERPRETED, unavailable
from rewriter.ops.triton.epilogue import activated, gelu
from rewriter.ops.triton.overlap import overlapping, wait_for_earlier
from rewriter.ops.triton.rows import LARGEST

Optional = torch.Tensor | None

# The longest row: 64 values for each thread of 8 warps.
LONGEST = 16384


@triton.jit
def f8e4m3(v):  # type: ignore[no-untyped-def]
    """The bits of v, f32 below 448 or NaN, rounded to nearest even. Triton's interpreter cuts digits off instead."""
    bits = tl.abs(v).to(tl.int32, bitcast=True)
    # 1.5 * 2**23, added and taken away, rounds to whole numbers, halves to even: its last bit is worth 1.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    subnormal = (tl.abs(v) * 512.0 + 12582912.0 - 12582912.0).to(tl.int32)
    magnitude = tl.where(tl.abs(v) < 0.015625, subnormal, normal)
    return tl.where(v == v, magnitude | tl.where(v < 0, 128, 0), 127).to(tl.uint8)


@triton.jit
def power_of_two(largest):  # type: ignore[no-untyped-def]
    """As `ops.low_precision.power_of_two`; what is smaller than 2**-100 is taken for that."""
    field = tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 27)
    return ((261 - field) << 23).to(tl.float32, bitcast=True), ((field - 7) << 23).to(tl.float32, bitcast=True)


@triton.jit
def as_stored(z, DTYPE: tl.constexpr, EMULATED: tl.constexpr):  # type: ignore[no-untyped-def]
    """z: f32, as it would come back from a tensor of the dtype. Triton's interpreter cuts digits off for bf16."""
    if EMULATED and tl.bfloat16 == DTYPE:
        bits = z.to(tl.int32, bitcast=True)
        kept = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        stored = (kept << 16).to(tl.float32, bitcast=True)
    else:
        stored = z.to(DTYPE).to(tl.float32)
    return stored


@triton.jit
def store_rows(  # type: ignore[no-untyped-def]
    z, codes, scales, row, column, rows, columns, inside, INTEGER: tl.constexpr, EMULATED: tl.constexpr
):
    """Quantises z: f32 [ROWS, COLUMNS], whole rows, 0 where not `inside`. row: [ROWS]; column: [1, COLUMNS].

    EMULATED: codes of f8e4m3 are made by hand and stored as u8.
    """
    finite = tl.abs(z) < float("inf")
    kept = tl.where(finite, z, 0.0)
    largest = tl.max(tl.abs(kept), axis=1)
    spoilt = tl.max(tl.where(finite, 0, 1), axis=1) > 0
    if INTEGER:
        largest = tl.maximum(largest, 7.888609052210118e-31)
        factor = tl.div_rn(tl.zeros_like(largest) + 127.0, largest)
        size = largest * 0.007874015748031496
        # The bounds also keep the compiler from making one operation, of one rounding, of the product and the sum.
        bounded = tl.minimum(tl.maximum(kept * factor[:, None], -127.0), 127.0)
        code = (bounded + 12582912.0 - 12582912.0).to(tl.int8)
    else:
        factor, size = power_of_two(largest)
        scaled = kept * factor[:, None]
        code = f8e4m3(scaled) if EMULATED else scaled.to(tl.float8e4nv)
    tl.store(codes + row.to(tl.int64)[:, None] * columns + column, code, mask=inside)
    tl.store(scales + row, tl.where(spoilt, float("nan"), size), mask=row < rows)


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    codes, scales, x, left,
    rows, columns, width, x_row, x_column, left_row, left_column,
    ACTIVATION: tl.constexpr, JOINED: tl.constexpr, PLAIN: tl.constexpr, INTEGER: tl.constexpr, EMULATED: tl.constexpr,
    OVERLAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows)[:, None] & (column < columns)
    place = row.to(tl.int64)[:, None]
    # `width` columns come from the left tensor.
    right = inside & (column >= width)
    own = x + place * x_row + (column - width) * x_column
    wait_for_earlier(OVERLAP)
    z = tl.load(own, mask=right, other=0.0).to(tl.float32)
    if ACTIVATION == "geglu":
        z *= gelu(tl.load(own + (columns - width) * x_column, mask=right, other=0.0).to(tl.float32))
    else:
        z = activated(z, ACTIVATION)
    if JOINED:
        other = tl.load(left + place * left_row + column * left_column, mask=inside & (column < width), other=0.0)
        z = tl.where(column < width, other.to(tl.float32), z)
    if PLAIN:
        tl.store(codes + place * columns + column, z.to(codes.dtype.element_ty), mask=inside)
    else:
        z = tl.where(inside, as_stored(z, x.dtype.element_ty, EMULATED), 0.0)
        store_rows(z, codes, scales, row, column, rows, columns, inside, INTEGER, EMULATED)


def blank_rows(
    leading: Sequence[int], columns: int, kind: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [*leading, columns] and scales [*leading, 1] to be filled."""
    codes = torch.empty((*leading, columns), dtype=FORMATS[kind], device=device)
    return codes, torch.empty((*leading, 1), dtype=torch.float32, device=device)


def code_options(codes: torch.Tensor) -> tuple[torch.Tensor, dict[str, bool]]:
    """What a kernel stores codes into, and the options of `store_rows`."""
    integer = codes.dtype == torch.int8
    stored = codes.view(torch.uint8) if INTERPRETED and not integer else codes
    return stored, {"INTEGER": integer, "EMULATED": INTERPRETED}


def row_configs(columns: int, rows: int) -> Sequence[Mapping[str, Any]]:
    """Rows per program and warps: 4,096 or 2,048 elements for a program, and 8 to 64 values for each thread."""
    width = triton.next_power_of_2(max(columns, 1))
    most = triton.next_power_of_2(max(rows, 1))
    found = {
        (min(max(1, elements // width), most), max(warps, width // 2048))
        for elements, warps in ((4096, 4), (2048, 4), (1024, 2))
    }
    return tuple({"rows": count, "num_warps": warps} for count, warps in sorted(found, reverse=True))


def rows_refusal(x: torch.Tensor, columns: int) -> str | None:
    """Why no kernel makes rows of `columns` elements out of those of x, or None."""
    reason = unavailable(x)
    if reason is not None:
        return reason
    if not 0 < columns <= LONGEST:
        return f"rows of no or more than {LONGEST:,} elements"
    return "too many rows" if x.numel() // x.shape[-1] > LARGEST else None


def format_refusal(x: torch.Tensor, kind: str) -> str | None:
    """Why no kernel stores rows in the format where x lies, or None."""
    if kind not in FORMATS:
        return f"no kernel for {kind}"
    if kind == "f8e4m3" and not INTERPRETED and torch.cuda.get_device_capability(x.device) < (8, 9):
        return "f8e4m3 needs compute capability 8.9 or newer"
    return None


def gated_quantised(
    x: torch.Tensor, activation: str, left: Optional, kind: str, **config: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the reference."""
    codes, scales = blank_rows(x.shape[:-1], _widths(x, activation, left)[1], kind, x.device)
    stored, options = code_options(codes)
    _run(stored, scales, x, activation, left, options | {"PLAIN": False}, config)
    return codes, scales


def gated(x: torch.Tensor, activation: str, left: Optional, **config: int) -> torch.Tensor:
    """As the reference."""
    y = torch.empty((*x.shape[:-1], _widths(x, activation, left)[1]), dtype=x.dtype, device=x.device)
    _run(y, y, x, activation, left, {"PLAIN": True, "INTEGER": False, "EMULATED": INTERPRETED}, config)
    return y


def _run(
    result: torch.Tensor,
    scales: torch.Tensor,
    x: torch.Tensor,
    activation: str,
    left: Optional,
    options: dict[str, bool],
    config: Mapping[str, int],
) -> None:
    flat = x.reshape(-1, x.shape[-1])
    joined = flat if left is None else left.reshape(-1, left.shape[-1])
    width, columns = _widths(x, activation, left)
    if not result.numel():
        return
    config = config or row_configs(columns, flat.shape[0])[0]
    with torch.cuda.device_of(x):
        _kernel[(triton.cdiv(flat.shape[0], config["rows"]),)](
            result, scales, flat, joined,
            flat.shape[0], columns, width, *flat.stride(), *joined.stride(),
            ACTIVATION=activation, JOINED=left is not None, **options, **overlapping(x.device),
            ROWS=config["rows"], COLUMNS=triton.next_power_of_2(columns), num_warps=config["num_warps"],
        )  # fmt: skip


def _widths(x: torch.Tensor, activation: str, left: Optional) -> tuple[int, int]:
    """The columns of the left tensor and of the result."""
    width = 0 if left is None else left.shape[-1]
    return width, width + (x.shape[-1] // 2 if activation == "geglu" else x.shape[-1])


def _takes_gated_quantised(x: torch.Tensor, activation: str, left: Optional, kind: str) -> str | None:
    return _takes_gated(x, activation, left) or format_refusal(x, kind)


def _takes_gated(x: torch.Tensor, activation: str, left: Optional) -> str | None:
    if activation not in ("geglu", *ACTIVATIONS):
        return f"no kernel for {activation}"
    if not x.dim() or not x.shape[-1] or (activation == "geglu" and x.shape[-1] % 2):
        return "rows without halves or elements"
    if left is not None and not left.shape[-1]:
        return "nothing to join"
    if left is not None and (left.dtype != x.dtype or left.device != x.device or left.shape[:-1] != x.shape[:-1]):
        return "parts of two kinds"
    return rows_refusal(x, _widths(x, activation, left)[1])


def _gated_configs(x: torch.Tensor, activation: str, left: Optional, *_: str) -> Sequence[Mapping[str, Any]]:
    return row_configs(_widths(x, activation, left)[1], x.numel() // max(x.shape[-1], 1))


def quantise_rows(x: torch.Tensor, kind: str, **config: int) -> tuple[torch.Tensor, torch.Tensor]:
    return gated_quantised(x, "none", None, kind, **config)


def _takes_rows(x: torch.Tensor, kind: str) -> str | None:
    return _takes_gated_quantised(x, "none", None, kind)


def _rows_configs(x: torch.Tensor, kind: str) -> Sequence[Mapping[str, Any]]:
    return _gated_configs(x, "none", None, kind)


provide("quantise_rows", "triton", quantise_rows, _takes_rows, _rows_configs)
provide("gated", "triton", gated, _takes_gated, _gated_configs)
provide("gated_quantised", "triton", gated_quantised, _takes_gated_quantised, _gated_configs)
