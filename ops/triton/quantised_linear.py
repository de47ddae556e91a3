"""Products of rows in eight bits, with the scales, the bias and the residual at the end of one kernel.

The two kernels of `linear`, for operands whose elements lie side by side: one program per tile with plain loads, and
persistent programs fed by the tensor memory accelerator of sm_90 and newer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from rewriter.ops.low_precision import FORMATS
from rewriter.ops.precision import NARROW
from rewriter.ops.registry import Config, provide
from rewriter.ops.triton.device import INTERPRETED, multiprocessors, unavailable
from rewriter.ops.triton.linear import GROUP, described, sizes, tile
from rewriter.ops.triton.overlap import overlapping, wait_for_earlier

Optional = torch.Tensor | None


@triton.jit
def _finished(  # type: ignore[no-untyped-def]
    total, scales, weight_scales, bias, residual, rows, columns, m, n, residual_row, residual_column,
    ADDED: tl.constexpr,
):  # fmt: skip
    size = tl.load(scales + rows, mask=rows < m, other=0.0)[:, None]
    weight_size = tl.load(weight_scales + columns, mask=columns < n, other=0.0)[None, :]
    y = total.to(tl.float32) * size * weight_size
    y += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    if ADDED:
        place = residual + rows.to(tl.int64)[:, None] * residual_row + columns.to(tl.int64)[None, :] * residual_column
        y += tl.load(place, mask=(rows < m)[:, None] & (columns < n)[None, :], other=0.0).to(tl.float32)
    return y


@triton.jit
def _tiled(  # type: ignore[no-untyped-def]
    codes, weight, scales, weight_scales, bias, residual, y,
    m, n, k, codes_row, weight_row, residual_row, residual_column,
    ADDED: tl.constexpr, INTEGER: tl.constexpr, WHOLE: tl.constexpr, OVERLAP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = tile(tl.program_id(0), tl.cdiv(m, ROWS), tl.cdiv(n, COLUMNS), GROUP)
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    depths = tl.arange(0, DEPTH)
    # Beyond the edge the loads wrap around instead of being masked; what they give is never stored.
    a_tile = codes + (rows % m).to(tl.int64)[:, None] * codes_row + depths[None, :]
    b_tile = weight + (columns % n).to(tl.int64)[None, :] * weight_row + depths[:, None]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.int32 if INTEGER else tl.float32)
    wait_for_earlier(OVERLAP)
    for start in range(0, k, DEPTH):
        if WHOLE:
            a = tl.load(a_tile)
            b = tl.load(b_tile)
        else:
            inside = depths < k - start
            a = tl.load(a_tile, mask=inside[None, :], other=0.0)
            b = tl.load(b_tile, mask=inside[:, None], other=0.0)
        total = tl.dot(a, b, total, out_dtype=tl.int32 if INTEGER else tl.float32)
        a_tile += DEPTH
        b_tile += DEPTH
    result = _finished(
        total, scales, weight_scales, bias, residual, rows, columns, m, n, residual_row, residual_column, ADDED
    )
    target = y + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(target, result.to(y.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


@triton.jit
def _persistent(  # type: ignore[no-untyped-def]
    codes, weight, scales, weight_scales, bias, residual, y,
    m, n, k, residual_row, residual_column,
    ADDED: tl.constexpr, INTEGER: tl.constexpr, PROGRAMS: tl.constexpr, OVERLAP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    rows_of_tiles = tl.cdiv(m, ROWS)
    columns_of_tiles = tl.cdiv(n, COLUMNS)
    wait_for_earlier(OVERLAP)
    for index in tl.range(tl.program_id(0), rows_of_tiles * columns_of_tiles, PROGRAMS, flatten=True):
        row_tile, column_tile = tile(index, rows_of_tiles, columns_of_tiles, GROUP)
        row = row_tile * ROWS
        column = column_tile * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.int32 if INTEGER else tl.float32)
        for start in range(0, k, DEPTH):
            a = codes.load([row, start])
            b = weight.load([column, start])
            total = tl.dot(a, b.T, total, out_dtype=tl.int32 if INTEGER else tl.float32)
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        result = _finished(
            total, scales, weight_scales, bias, residual, rows, columns, m, n, residual_row, residual_column, ADDED
        )
        y.store([row, column], result.to(y.dtype))


def quantised_linear(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    residual: Optional = None,
    *,
    rows: int = 128,
    columns: int = 128,
    depth: int = 128,
    warps: int = 8,
    stages: int = 3,
    persistent: int = 0,
) -> torch.Tensor:
    """(codes * scales) @ (weight * weight_scales).T + bias + residual, operands as in the reference; exact sums for i8,
    f32 sums for f8e4m3, rounded once at the end. The config: see `linear`.
    """
    flat = codes.reshape(-1, codes.shape[-1])
    m, k = flat.shape
    n = weight.shape[0]
    y = torch.empty((m, n), dtype=bias.dtype, device=codes.device)
    added = y if residual is None else residual.reshape(m, n)
    vectors = scales.contiguous(), weight_scales.contiguous(), bias.contiguous(), added
    tiles = triton.cdiv(m, rows) * triton.cdiv(n, columns)
    launch: dict[str, Any] = {
        "ADDED": residual is not None,
        "INTEGER": codes.dtype == torch.int8,
        **overlapping(codes.device),
        "ROWS": rows,
        "COLUMNS": columns,
        "DEPTH": depth,
        "GROUP": GROUP,
        "num_warps": warps,
        "num_stages": stages,
    }
    with torch.cuda.device_of(codes):
        if persistent and _describable(flat, weight, y):
            programs = min(tiles, persistent * multiprocessors(codes.device))
            operands = described(flat, rows, depth), described(weight, columns, depth)
            target = described(y, rows, columns)
            _persistent[(programs,)](*operands, *vectors, target, m, n, k, *added.stride(), PROGRAMS=programs, **launch)
        else:
            strides = flat.stride(0), weight.stride(0), *added.stride()
            _tiled[(tiles,)](flat, weight, *vectors, y, m, n, k, *strides, WHOLE=k % depth == 0, **launch)
    return y.view(*codes.shape[:-1], n)


def _takes(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    residual: Optional = None,
) -> str | None:
    reason = unavailable(bias)
    if reason is not None:
        return reason
    if bias.dtype not in NARROW or codes.dtype not in FORMATS.values() or weight.dtype != codes.dtype:
        return "only f8e4m3 by f8e4m3 and i8 by i8 to f16 or bf16"
    if (
        codes.dtype == torch.float8_e4m3fn
        and not INTERPRETED
        and torch.cuda.get_device_capability(codes.device) < (8, 9)
    ):
        return "f8e4m3 needs compute capability 8.9 or newer"
    operands = (codes, scales, weight, weight_scales, bias, *(() if residual is None else (residual,)))
    if any(operand.device != codes.device for operand in operands):
        return "the operands are on different devices"
    if (
        codes.dim() == 0
        or weight.dim() != 2
        or codes.shape[-1] != weight.shape[1]
        or 0 in (codes.numel(), *weight.shape)
    ):
        return "an empty product, or shapes that torch refuses too"
    if scales.dtype != torch.float32 or weight_scales.dtype != torch.float32:
        return "scales in other than f32"
    if (
        scales.numel() != codes.numel() // codes.shape[-1]
        or not weight_scales.numel() == bias.numel() == weight.shape[0]
    ):
        return "scales or a bias that are broadcast"
    if not codes.is_contiguous() or weight.stride(1) != 1:
        return "rows with gaps"
    if residual is not None and (
        residual.shape != (*codes.shape[:-1], weight.shape[0]) or residual.dtype != bias.dtype
    ):
        return "the residual broadcasts or promotes"
    # Row and column numbers are 32-bit in the kernels.
    return "more than 2^30 rows" if max(codes.numel() // codes.shape[-1], *weight.shape) >= 2**30 else None


def _describable(codes: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether the tensor memory accelerator can read and write these rows: sm_90 or newer, multiples of 16 bytes."""
    if codes.is_cuda and torch.cuda.get_device_capability(codes.device) < (9, 0):
        return False
    return y.shape[1] % 8 == 0 and all(x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0 for x in (codes, weight))


def _configs(codes: torch.Tensor, _: torch.Tensor, weight: torch.Tensor, *rest: torch.Tensor) -> Sequence[Config]:
    m = codes.numel() // codes.shape[-1]
    n = weight.shape[0]
    if triton.cdiv(m, 128) * triton.cdiv(n, 256) >= multiprocessors(codes.device):
        found = [
            sizes(128, 256, 128, warps=8, stages=3, persistent=1),
            sizes(128, 128, 128, warps=8, stages=4, persistent=1),
            sizes(128, 128, 128, warps=8, stages=3),
        ]
        if len(rest) > 2:
            # The tile of the residual takes the shared memory that the widest needs.
            found = found[1:]
    else:
        found = [
            sizes(128, 128, 128, warps=8, stages=4, persistent=1),
            sizes(128, 128, 128, warps=4, stages=3),
            sizes(64, 128, 128, warps=4, stages=4),
            sizes(64, 64, 128, warps=4, stages=4),
        ]
    y = torch.empty((1, n), dtype=rest[1].dtype, device="meta")
    if _describable(codes.reshape(-1, codes.shape[-1]), weight, y):
        return found
    return [config for config in found if not config["persistent"]]


provide("quantised_linear", "triton", quantised_linear, _takes, _configs)
provide("quantised_linear_add", "triton", quantised_linear, _takes, _configs)
