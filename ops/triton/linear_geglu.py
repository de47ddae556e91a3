"""linear + GEGLU as one matrix product: each program holds a tile of both halves, so the wide result is never stored.

Two kernels, as for `linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from rewriter.ops.registry import Config, provide
from rewriter.ops.triton.device import INTERPRETED, multiprocessors
from rewriter.ops.triton.epilogue import gelu
from rewriter.ops.triton.linear import GROUP, describable, described, product, refusal, sizes, tile
from rewriter.ops.triton.overlap import overlapping, wait_for_earlier

Optional = torch.Tensor | None


@triton.jit
def _tiled(  # type: ignore[no-untyped-def]
    x, weight, bias, y,
    m, n, k,
    x_row, x_column, weight_row, weight_column,
    BIASED: tl.constexpr, WIDEN: tl.constexpr, WHOLE: tl.constexpr, OVERLAP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = tile(tl.program_id(0), tl.cdiv(m, ROWS), tl.cdiv(n, COLUMNS), GROUP)
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    depths = tl.arange(0, DEPTH)
    # Beyond the edge the loads wrap around instead of being masked; what they give is never stored.
    x_rows = (rows % m).to(tl.int64)
    weight_rows = (columns % n).to(tl.int64)
    x_tile = x + x_rows[:, None] * x_row + depths[None, :] * x_column
    hidden_tile = weight + weight_rows[None, :] * weight_row + depths[:, None] * weight_column
    gate_tile = weight + (n + weight_rows)[None, :] * weight_row + depths[:, None] * weight_column
    hidden = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    wait_for_earlier(OVERLAP)
    for start in range(0, k, DEPTH):
        if WHOLE:
            a = tl.load(x_tile)
            h = tl.load(hidden_tile)
            g = tl.load(gate_tile)
        else:
            inside = depths < k - start
            a = tl.load(x_tile, mask=inside[None, :], other=0.0)
            h = tl.load(hidden_tile, mask=inside[:, None], other=0.0)
            g = tl.load(gate_tile, mask=inside[:, None], other=0.0)
        hidden = product(a, h, hidden, WIDEN)
        gate = product(a, g, gate, WIDEN)
        x_tile += DEPTH * x_column
        hidden_tile += DEPTH * weight_column
        gate_tile += DEPTH * weight_column
    if BIASED:
        hidden += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(bias + n + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    result = (hidden * gelu(gate)).to(y.dtype.element_ty)
    target = y + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(target, result, mask=(rows < m)[:, None] & (columns < n)[None, :])


@triton.jit
def _persistent(  # type: ignore[no-untyped-def]
    x, weight, bias, y,
    m, n, k,
    BIASED: tl.constexpr, WIDEN: tl.constexpr, PROGRAMS: tl.constexpr, OVERLAP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    rows_of_tiles = tl.cdiv(m, ROWS)
    columns_of_tiles = tl.cdiv(n, COLUMNS)
    wait_for_earlier(OVERLAP)
    for index in tl.range(tl.program_id(0), rows_of_tiles * columns_of_tiles, PROGRAMS, flatten=True):
        row_tile, column_tile = tile(index, rows_of_tiles, columns_of_tiles, GROUP)
        row = row_tile * ROWS
        column = column_tile * COLUMNS
        hidden = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, k, DEPTH):
            a = x.load([row, start])
            h = weight.load([column, start])
            g = weight.load([n + column, start])
            hidden = product(a, h.T, hidden, WIDEN)
            gate = product(a, g.T, gate, WIDEN)
        if BIASED:
            columns = column + tl.arange(0, COLUMNS)
            hidden += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
            gate += tl.load(bias + n + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
        y.store([row, column], (hidden * gelu(gate)).to(y.dtype))


def linear_geglu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    *,
    rows: int = 128,
    columns: int = 128,
    depth: int = 64,
    warps: int = 8,
    stages: int = 3,
    persistent: int = 0,
) -> torch.Tensor:
    """hidden * gelu(gate), operands as in the reference, f16 or bf16; sums in f32, rounded once at the end.

    A program makes rows x columns elements of the result in steps of `depth` along K, with `stages` steps in flight.
    persistent: so many programs per multiprocessor, each of which makes one tile after the other with the accelerator's
    loads, where that can read the operands (see `describable`); 0 for a program per tile with plain loads.
    """
    flat = x.reshape(-1, x.shape[-1])
    m, k = flat.shape
    n = weight.shape[0] // 2
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    tiles = triton.cdiv(m, rows) * triton.cdiv(n, columns)
    blocks = {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth, "GROUP": GROUP, **overlapping(x.device)}
    dense_bias = weight if bias is None else bias.contiguous()
    widen = INTERPRETED and x.dtype == torch.bfloat16
    launch: dict[str, Any] = {"BIASED": bias is not None, "WIDEN": widen, "num_warps": warps, "num_stages": stages}
    with torch.cuda.device_of(x):
        if persistent and describable(flat, weight, n):
            programs = min(tiles, persistent * multiprocessors(x.device))
            _persistent[(programs,)](
                described(flat, rows, depth),
                described(weight, columns, depth),
                dense_bias,
                described(y, rows, columns),
                m,
                n,
                k,
                PROGRAMS=programs,
                **blocks,
                **launch,
            )
        else:
            _tiled[(tiles,)](
                flat,
                weight,
                dense_bias,
                y,
                m,
                n,
                k,
                *flat.stride(),
                *weight.stride(),
                WHOLE=k % depth == 0,
                **blocks,
                **launch,
            )
    return y.view(*x.shape[:-1], n)


def takes(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    return refusal(x, weight, bias) or ("the weight has no two halves" if weight.shape[0] % 2 else None)


def configs(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> Sequence[Config]:  # noqa: ARG001
    m = x.numel() // x.shape[-1]
    n = weight.shape[0] // 2
    if triton.cdiv(m, 128) * triton.cdiv(n, 128) >= multiprocessors(x.device):
        found = [
            sizes(128, 128, 64, warps=8, stages=4, persistent=1),
            sizes(128, 64, 64, warps=4, stages=3),
        ]
    else:
        found = [
            sizes(128, 64, 64, warps=4, stages=3),
            sizes(64, 64, 64, warps=4, stages=4),
        ]
    if describable(x.reshape(-1, x.shape[-1]), weight, n):
        return found
    return [config for config in found if not config["persistent"]]


provide("linear_geglu", "triton", linear_geglu, takes, configs)
