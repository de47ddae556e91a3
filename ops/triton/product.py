"""Products of rows by rows in tiles, with what follows them at the end of one kernel: scales, a bias, a residual, an
activation or a gate.

Two kernels: one program per tile with plain loads, which takes any strides, and persistent programs fed by the tensor
memory accelerator of sm_90 and newer, which overlap a tile's end with the next one's start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from rewriter.ops.registry import Config
from rewriter.ops.triton.device import INTERPRETED, multiprocessors
from rewriter.ops.triton.epilogue import activated, gelu
from rewriter.ops.triton.overlap import overlapping, wait_for_earlier

Optional = torch.Tensor | None

# Rows of tiles per group: neighbours in time share columns of the weight in L2.
GROUP = 8
# What the accelerator reads begins at multiples of so many bytes.
_ALIGNED = 16


@triton.jit
def product(a, b, total, WIDEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + a @ b, f32, or i32 where a and b are i8. WIDEN: the interpreter's product takes bf16 for integers."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, out_dtype=total.dtype)


@triton.jit
def _tile(index, rows_of_tiles, columns_of_tiles, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The row and column of the tile with this number, in groups of GROUP rows."""
    group = index // (GROUP * columns_of_tiles)
    first = group * GROUP
    size = tl.minimum(rows_of_tiles - first, GROUP)
    inside = index % (GROUP * columns_of_tiles)
    return first + inside % size, inside // size


@triton.jit
def _loaded(place, inside, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(place) if WHOLE else tl.load(place, mask=inside, other=0.0)


@triton.jit
def _vector(values, columns, n):  # type: ignore[no-untyped-def]
    """One value for each column, f32 [1, COLUMNS]."""
    return tl.load(values + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _finished(  # type: ignore[no-untyped-def]
    total, gate, scales, weight_scales, bias, added, rows, columns, m, n, added_row, added_column,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    if scales is not None:
        size = tl.load(scales + rows, mask=rows < m, other=0.0)[:, None]
        total = total.to(tl.float32) * size * _vector(weight_scales, columns, n)
    if bias is not None:
        total += _vector(bias, columns, n)
    if added is not None:
        place = added + rows.to(tl.int64)[:, None] * added_row + columns.to(tl.int64)[None, :] * added_column
        mask = (rows < m)[:, None] & (columns < n)[None, :]
        total += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "geglu":
        if bias is not None:
            gate += _vector(bias + n, columns, n)
        total *= gelu(gate)
    else:
        total = activated(total, ACTIVATION)
    return total


@triton.jit
def _tiled(  # type: ignore[no-untyped-def]
    x, weight, scales, weight_scales, bias, added, y,
    m, n, k,
    x_row, x_column, weight_row, weight_column, added_row, added_column,
    ACTIVATION: tl.constexpr, INTEGER: tl.constexpr, WIDEN: tl.constexpr, WHOLE: tl.constexpr, OVERLAP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    GATED: tl.constexpr = ACTIVATION == "geglu"
    row_tile, column_tile = _tile(tl.program_id(0), tl.cdiv(m, ROWS), tl.cdiv(n, COLUMNS), GROUP)
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    depths = tl.arange(0, DEPTH)
    # Beyond the edge the loads wrap around instead of being masked; what they give is never stored.
    x_rows = (rows % m).to(tl.int64)
    weight_rows = (columns % n).to(tl.int64)
    x_tile = x + x_rows[:, None] * x_row + depths[None, :] * x_column
    weight_tile = weight + weight_rows[None, :] * weight_row + depths[:, None] * weight_column
    gate_tile = weight + (n + weight_rows)[None, :] * weight_row + depths[:, None] * weight_column
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.int32 if INTEGER else tl.float32)
    gate = total
    wait_for_earlier(OVERLAP)
    for start in range(0, k, DEPTH):
        inside = depths < k - start
        a = _loaded(x_tile, inside[None, :], WHOLE)
        b = _loaded(weight_tile, inside[:, None], WHOLE)
        g = _loaded(gate_tile, inside[:, None], WHOLE) if GATED else b
        total = product(a, b, total, WIDEN)
        if GATED:
            gate = product(a, g, gate, WIDEN)
        x_tile += DEPTH * x_column
        weight_tile += DEPTH * weight_column
        if GATED:
            gate_tile += DEPTH * weight_column
    result = _finished(
        total, gate, scales, weight_scales, bias, added, rows, columns, m, n, added_row, added_column, ACTIVATION
    ).to(y.dtype.element_ty)
    target = y + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(target, result, mask=(rows < m)[:, None] & (columns < n)[None, :])


@triton.jit
def _persistent(  # type: ignore[no-untyped-def]
    x, weight, scales, weight_scales, bias, added, y,
    m, n, k,
    added_row, added_column,
    ACTIVATION: tl.constexpr, INTEGER: tl.constexpr, WIDEN: tl.constexpr, PROGRAMS: tl.constexpr, OVERLAP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    GATED: tl.constexpr = ACTIVATION == "geglu"
    rows_of_tiles = tl.cdiv(m, ROWS)
    columns_of_tiles = tl.cdiv(n, COLUMNS)
    wait_for_earlier(OVERLAP)
    for index in tl.range(tl.program_id(0), rows_of_tiles * columns_of_tiles, PROGRAMS, flatten=True):
        row_tile, column_tile = _tile(index, rows_of_tiles, columns_of_tiles, GROUP)
        row = row_tile * ROWS
        column = column_tile * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.int32 if INTEGER else tl.float32)
        gate = total
        for start in range(0, k, DEPTH):
            a = x.load([row, start])
            b = weight.load([column, start])
            g = weight.load([n + column, start]) if GATED else b
            total = product(a, b.T, total, WIDEN)
            if GATED:
                gate = product(a, g.T, gate, WIDEN)
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        result = _finished(
            total, gate, scales, weight_scales, bias, added, rows, columns, m, n, added_row, added_column, ACTIVATION
        )
        y.store([row, column], result.to(y.dtype))


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    residual: Optional = None,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    activation: str = "none",
    *,
    rows: int = 128,
    columns: int = 128,
    depth: int = 64,
    warps: int = 8,
    stages: int = 3,
    persistent: int = 0,
) -> torch.Tensor:
    """activation(x @ weight.T + bias + residual): sums in f32, exact ones for i8, rounded once at the end.

    x: [..., K], weight: [N, K], both f16, bf16, f8e4m3 or i8; bias: [N] or None; residual: [..., N] or None. scales:
    what the rows of x and of the weight are multiplied by, f32, for f8e4m3 and i8 alone, which need a bias too. Result:
    in the dtype of the bias, without one in that of x. activation: as in `activated`, or geglu: the result is the half
    of the columns that come first * gelu of the others, without a residual.

    A program makes rows x columns elements of the result in steps of `depth` along K, with `stages` steps in flight.
    persistent: so many programs per multiprocessor, each of which makes one tile after the other with the accelerator's
    loads, where that can read the operands (see `describable`); 0 for a program per tile with plain loads.
    """
    flat = x.reshape(-1, x.shape[-1])
    m, k = flat.shape
    n = weight.shape[0] // 2 if activation == "geglu" else weight.shape[0]
    y = torch.empty((m, n), dtype=x.dtype if bias is None else bias.dtype, device=x.device)
    added = None if residual is None else residual.reshape(m, n)
    steps = (None, None) if added is None else added.stride()
    vectors = (*(scales or (None, None)), bias)
    ends = (*(each if each is None else each.contiguous() for each in vectors), added)
    tiles = triton.cdiv(m, rows) * triton.cdiv(n, columns)
    launch: dict[str, Any] = {
        "ACTIVATION": activation,
        "INTEGER": x.dtype == torch.int8,
        "WIDEN": INTERPRETED and x.dtype == torch.bfloat16,
        **overlapping(x.device),
        "ROWS": rows,
        "COLUMNS": columns,
        "DEPTH": depth,
        "GROUP": GROUP,
        "num_warps": warps,
        "num_stages": stages,
    }
    with torch.cuda.device_of(x):
        if persistent and describable(flat, weight, n):
            programs = min(tiles, persistent * multiprocessors(x.device))
            operands = _described(flat, rows, depth), _described(weight, columns, depth)
            target = _described(y, rows, columns)
            _persistent[(programs,)](*operands, *ends, target, m, n, k, *steps, PROGRAMS=programs, **launch)
        else:
            strides = *flat.stride(), *weight.stride(), *steps
            _tiled[(tiles,)](flat, weight, *ends, y, m, n, k, *strides, WHOLE=k % depth == 0, **launch)
    return y.view(*x.shape[:-1], n)


def shape_refusal(x: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Why no kernel here multiplies tensors of these shapes, or None."""
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        return "shapes that torch refuses too"
    if 0 in (x.numel(), *weight.shape):
        return "an empty product"
    # Row and column numbers are 32-bit in the kernels.
    return "more than 2^30 rows" if max(x.numel() // x.shape[-1], *weight.shape) >= 2**30 else None


def residual_refusal(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> str | None:
    """Why no kernel here adds the residual to x @ weight.T, or None. dtype: of the result."""
    if residual.shape != (*x.shape[:-1], weight.shape[0]) or residual.dtype != dtype:
        return "the residual broadcasts or promotes"
    return None if residual.device == x.device else "the operands are on different devices"


def sizes(rows: int, columns: int, depth: int, *, warps: int, stages: int, persistent: int = 0) -> Config:
    """A config of `multiply`."""
    blocks = {"rows": rows, "columns": columns, "depth": depth}
    return {**blocks, "warps": warps, "stages": stages, "persistent": persistent}


def usable(configs: Sequence[Config], x: torch.Tensor, weight: torch.Tensor, columns: int) -> Sequence[Config]:
    """The configs of `multiply` that do as they say for x: [..., K]: persistent ones ask for the accelerator."""
    able = describable(x.reshape(-1, x.shape[-1]), weight, columns)
    return [config for config in configs if able or not config["persistent"]]


def describable(x: torch.Tensor, weight: torch.Tensor, columns: int) -> bool:
    """Whether the accelerator can read x: [M, K] and weight: [..., K], and write a dense [M, columns] in f16 or bf16:
    sm_90 or newer, rows without gaps inside, and rows and storage that start at multiples of 16 bytes."""
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return False
    return columns % 8 == 0 and all(
        operand.stride(1) == 1
        and operand.stride(0) * operand.itemsize % _ALIGNED == 0
        and operand.stride(0) >= operand.shape[1]
        and operand.data_ptr() % _ALIGNED == 0
        for operand in (x, weight)
    )


def _described(matrix: torch.Tensor, rows: int, columns: int) -> Any:
    """The matrix as the accelerator takes it, in blocks of rows x columns."""
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])
