"""Linear layers with bias, residual and activation in one kernel, where cuBLASLt has no such epilogue or is missing.

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

from rewriter.ops.activation import ACTIVATIONS
from rewriter.ops.precision import NARROW
from rewriter.ops.registry import Config, provide
from rewriter.ops.triton.device import INTERPRETED, multiprocessors, unavailable
from rewriter.ops.triton.epilogue import activated
from rewriter.ops.triton.overlap import overlapping, wait_for_earlier

Optional = torch.Tensor | None

# Rows of tiles per group: neighbours in time share columns of the weight in L2.
GROUP = 8
_WIDEST = 256


@triton.jit
def tile(index, rows_of_tiles, columns_of_tiles, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The row and column of the tile with this number, in groups of GROUP rows."""
    group = index // (GROUP * columns_of_tiles)
    first = group * GROUP
    size = tl.minimum(rows_of_tiles - first, GROUP)
    inside = index % (GROUP * columns_of_tiles)
    return first + inside % size, inside // size


@triton.jit
def product(a, b, total, WIDEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + a @ b in f32. WIDEN: the interpreter's product takes bf16 for integers."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total)


@triton.jit
def _finished(  # type: ignore[no-untyped-def]
    total, bias, residual, rows, columns, m, n, residual_row, residual_column,
    BIASED: tl.constexpr, ADDED: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    if BIASED:
        total += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    if ADDED:
        place = residual + rows.to(tl.int64)[:, None] * residual_row + columns.to(tl.int64)[None, :] * residual_column
        mask = (rows < m)[:, None] & (columns < n)[None, :]
        total += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    return activated(total, ACTIVATION)


@triton.jit
def _tiled(  # type: ignore[no-untyped-def]
    x, weight, bias, residual, y,
    m, n, k,
    x_row, x_column, weight_row, weight_column, residual_row, residual_column,
    BIASED: tl.constexpr, ADDED: tl.constexpr, ACTIVATION: tl.constexpr, WIDEN: tl.constexpr, WHOLE: tl.constexpr,
    OVERLAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = tile(tl.program_id(0), tl.cdiv(m, ROWS), tl.cdiv(n, COLUMNS), GROUP)
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    depths = tl.arange(0, DEPTH)
    # Beyond the edge the loads wrap around instead of being masked; what they give is never stored.
    x_tile = x + (rows % m).to(tl.int64)[:, None] * x_row + depths[None, :] * x_column
    weight_tile = weight + (columns % n).to(tl.int64)[None, :] * weight_row + depths[:, None] * weight_column
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    wait_for_earlier(OVERLAP)
    for start in range(0, k, DEPTH):
        if WHOLE:
            a = tl.load(x_tile)
            b = tl.load(weight_tile)
        else:
            inside = depths < k - start
            a = tl.load(x_tile, mask=inside[None, :], other=0.0)
            b = tl.load(weight_tile, mask=inside[:, None], other=0.0)
        total = product(a, b, total, WIDEN)
        x_tile += DEPTH * x_column
        weight_tile += DEPTH * weight_column
    result = _finished(
        total, bias, residual, rows, columns, m, n, residual_row, residual_column, BIASED, ADDED, ACTIVATION
    )
    target = y + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(target, result.to(y.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


@triton.jit
def _persistent(  # type: ignore[no-untyped-def]
    x, weight, bias, residual, y,
    m, n, k,
    residual_row, residual_column,
    BIASED: tl.constexpr, ADDED: tl.constexpr, ACTIVATION: tl.constexpr, WIDEN: tl.constexpr, PROGRAMS: tl.constexpr,
    OVERLAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    rows_of_tiles = tl.cdiv(m, ROWS)
    columns_of_tiles = tl.cdiv(n, COLUMNS)
    wait_for_earlier(OVERLAP)
    for index in tl.range(tl.program_id(0), rows_of_tiles * columns_of_tiles, PROGRAMS, flatten=True):
        row_tile, column_tile = tile(index, rows_of_tiles, columns_of_tiles, GROUP)
        row = row_tile * ROWS
        column = column_tile * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, k, DEPTH):
            total = product(x.load([row, start]), weight.load([column, start]).T, total, WIDEN)
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        result = _finished(
            total, bias, residual, rows, columns, m, n, residual_row, residual_column, BIASED, ADDED, ACTIVATION
        )
        y.store([row, column], result.to(y.dtype))


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    residual: Optional,
    activation: str,
    *,
    rows: int = 128,
    columns: int = 128,
    depth: int = 64,
    warps: int = 8,
    stages: int = 3,
    persistent: int = 0,
) -> torch.Tensor:
    """activation(x @ weight.T + bias + residual), f16 or bf16; sums in f32, rounded once at the end.

    x: [..., K], weight: [N, K], bias: [N] or None, residual: [..., N] or None. A program makes rows x columns elements
    of the result in steps of `depth` along K, with `stages` steps in flight.
    persistent: so many programs per multiprocessor, each of which makes one tile after the other with the accelerator's
    loads, where that can read the operands (see `describable`); 0 for a program per tile with plain loads.
    """
    flat = x.reshape(-1, x.shape[-1])
    m, k = flat.shape
    n = weight.shape[0]
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    added = y if residual is None else residual.reshape(m, n)
    dense_bias = weight if bias is None else bias.contiguous()
    tiles = triton.cdiv(m, rows) * triton.cdiv(n, columns)
    launch: dict[str, Any] = {
        "BIASED": bias is not None,
        "ADDED": residual is not None,
        "ACTIVATION": activation,
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
            operands = described(flat, rows, depth), described(weight, columns, depth), dense_bias, added
            target = described(y, rows, columns)
            _persistent[(programs,)](*operands, target, m, n, k, *added.stride(), PROGRAMS=programs, **launch)
        else:
            strides = *flat.stride(), *weight.stride(), *added.stride()
            whole = k % depth == 0
            _tiled[(tiles,)](flat, weight, dense_bias, added, y, m, n, k, *strides, WHOLE=whole, **launch)
    return y.view(*x.shape[:-1], n)


def linear_act(x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str, **config: int) -> torch.Tensor:
    return linear(x, weight, bias, None, activation, **config)


def linear_add(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: torch.Tensor, **config: int
) -> torch.Tensor:
    return linear(x, weight, bias, residual, "none", **config)


def refusal(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    """Why no kernel here multiplies x: [..., K] by weight: [N, K] and adds bias: [N], or None."""
    reason = unavailable(x)
    if reason is not None:
        return reason
    operands = [x, weight] if bias is None else [x, weight, bias]
    if x.dtype not in NARROW or any(operand.dtype != x.dtype for operand in operands):
        return "only f16 and bf16 have tensor cores that keep their precision"
    if any(operand.device != x.device for operand in operands):
        return "the operands are on different devices"
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        return "shapes that torch refuses too"
    if bias is not None and bias.shape != (weight.shape[0],):
        return "a bias that is broadcast"
    if 0 in (x.numel(), *weight.shape):
        return "an empty product"
    # Row and column numbers are 32-bit in the kernels.
    if max(x.numel() // x.shape[-1], *weight.shape) >= 2**30:
        return "more than 2^30 rows"
    return None


def takes_act(x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str) -> str | None:
    return refusal(x, weight, bias) if activation in ACTIVATIONS else f"no kernel for {activation}"


def takes_add(x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: torch.Tensor) -> str | None:
    reason = refusal(x, weight, bias)
    if reason is not None:
        return reason
    if residual.shape != (*x.shape[:-1], weight.shape[0]) or residual.dtype != x.dtype:
        return "the residual broadcasts or promotes"
    return None if residual.device == x.device else "the operands are on different devices"


def describable(x: torch.Tensor, weight: torch.Tensor, columns: int) -> bool:
    """Whether the accelerator can read x: [M, K] and weight: [..., K], and write a dense [M, columns]: sm_90 or newer,
    rows without gaps inside, and rows and storage that start at multiples of 16 bytes."""
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return False
    return columns % 8 == 0 and all(
        operand.stride(1) == 1
        and operand.stride(0) % 8 == 0
        and operand.stride(0) >= operand.shape[1]
        and operand.data_ptr() % 16 == 0
        for operand in (x, weight)
    )


def described(matrix: torch.Tensor, rows: int, columns: int) -> Any:
    """The matrix as the accelerator takes it, in blocks of rows x columns."""
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])


def sizes(rows: int, columns: int, depth: int, *, warps: int, stages: int, persistent: int = 0) -> Config:
    """A config of `linear` and of `linear_geglu`."""
    blocks = {"rows": rows, "columns": columns, "depth": depth}
    return {**blocks, "warps": warps, "stages": stages, "persistent": persistent}


def configs(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> Sequence[Config]:
    m = x.numel() // x.shape[-1]
    n = weight.shape[0]
    if triton.cdiv(m, 128) * triton.cdiv(n, 256) >= multiprocessors(x.device):
        found = [
            sizes(128, _WIDEST, 64, warps=8, stages=3, persistent=1),
            sizes(128, 128, 64, warps=8, stages=4, persistent=1),
            sizes(128, 128, 64, warps=8, stages=4),
        ]
    else:
        found = [
            sizes(128, 128, 64, warps=8, stages=3),
            sizes(128, 64, 64, warps=4, stages=4),
            sizes(64, 64, 128, warps=4, stages=3),
            sizes(64, 32, 128, warps=4, stages=4),
        ]
    if describable(x.reshape(-1, x.shape[-1]), weight, n):
        return found
    return [config for config in found if not config["persistent"]]


def add_configs(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Sequence[Config]:
    """Those of `configs` that leave shared memory for a tile of the residual."""
    return [config for config in configs(x, weight, *rest) if config["columns"] < _WIDEST or not config["persistent"]]


provide("linear_act", "triton", linear_act, takes_act, configs)
provide("linear_add", "triton", linear_add, takes_add, add_configs)
