"""Linear layers of rows in f8e4m3, plain, with a residual, with GEGLU, on Hopper (`csrc/quantised.cu`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rewriter.ops.cuda.tiles import aligned, elsewhere
from rewriter.ops.precision import NARROW
from rewriter.ops.registry import Config, provide

Optional = torch.Tensor | None

_TILE_ROWS, _TILE_COLUMNS, _MULTIPROCESSORS = 128, 160, 132
# Rows that are done for all columns before the next ones: what runs at once reads few rows and few columns.
_BAND = 2048
# Below this many rows, tiles are mostly empty. From so many results on, a multiprocessor has two tiles or more.
_FEWEST_ROWS = 64
_MANY_RESULTS = 2 * _MULTIPROCESSORS * _TILE_ROWS * _TILE_COLUMNS
# The copy engine moves 16 elements at a time, the ends of a tile store 8.
_DEPTH, _COLUMNS = 16, 8


def quantised_linear(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    residual: Optional = None,
    *,
    gated: bool = False,
    alternate: bool,
    across: int,
    along: int,
) -> torch.Tensor:
    """(codes * scales) @ (weight * weight_scales).T + bias + residual, operands as in the reference; gated: hidden *
    gelu(gate) of the two halves. Sums in f32, with the digits that the tensor cores keep of them, rounded once.

    alternate: whether both groups of a block have tiles of their own, in turns; across, along: blocks of a cluster that
    share rows, and columns.
    """
    columns = weight.shape[0] // 2 if gated else weight.shape[0]
    flat = codes.view(-1, codes.shape[-1])
    y = torch.empty((*codes.shape[:-1], columns), dtype=bias.dtype, device=codes.device)
    torch.ops.rewriter_cuda.quantised_linear(
        flat.view(bias.dtype),
        scales.view(-1),
        weight.view(bias.dtype),
        weight_scales.view(-1),
        bias,
        None if residual is None else residual.view(-1, columns),
        y.view(-1, columns),
        gated,
        alternate,
        across,
        along,
        _BAND // (_TILE_ROWS * along),
    )
    return y


def quantised_linear_geglu(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    **way: Any,
) -> torch.Tensor:
    """hidden * gelu(gate); the rest as in `quantised_linear`."""
    return quantised_linear(codes, scales, weight, weight_scales, bias, gated=True, **way)


def takes(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor, bias: torch.Tensor
) -> str | None:
    operands = (codes, scales, weight, weight_scales, bias)
    reason = elsewhere(*operands)
    if reason is not None:
        return reason
    reason = other_formats(*operands)
    if reason is not None:
        return reason
    if not codes.dim() or weight.dim() != 2 or codes.shape[-1] != weight.shape[1] or 0 in (*codes.shape, *weight.shape):
        return "an empty product, or shapes that torch refuses too"
    rows = codes.numel() // codes.shape[-1]
    if scales.numel() != rows or not weight_scales.numel() == bias.numel() == weight.shape[0]:
        return "scales or a bias that are broadcast"
    if rows < _FEWEST_ROWS or codes.shape[-1] % _DEPTH or weight.shape[0] % _COLUMNS:
        return "few rows, or sizes that are no multiples of 16 and 8"
    if not all(operand.is_contiguous() and aligned(operand) for operand in operands):
        return "operands with gaps, or that do not start at a multiple of 16 bytes"
    return None if max(codes.numel(), weight.numel(), rows * weight.shape[0]) < 2**31 else "more than 2^31 elements"


def other_formats(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor, bias: torch.Tensor
) -> str | None:
    """Why the operands of a product in eight bits are of dtypes that no kernel here takes, or None."""
    if codes.dtype != torch.float8_e4m3fn or weight.dtype != codes.dtype or bias.dtype not in NARROW:
        return "only f8e4m3 by f8e4m3 to f16 or bf16"
    if scales.dtype != torch.float32 or weight_scales.dtype != torch.float32:
        return "scales in other than f32"
    return None


def takes_add(*arguments: torch.Tensor) -> str | None:
    *operands, residual = arguments
    reason = takes(*operands)
    if reason is not None:
        return reason
    codes, _, weight, _, bias = operands
    if residual.shape != (*codes.shape[:-1], weight.shape[0]) or residual.dtype != bias.dtype:
        return "the residual broadcasts or promotes"
    if residual.device != codes.device or not residual.is_contiguous() or not aligned(residual):
        return "the residual has gaps or is on another device"
    return None


def takes_geglu(*operands: torch.Tensor) -> str | None:
    reason = takes(*operands)
    if reason is not None:
        return reason
    return "halves that are no multiples of 8" if operands[2].shape[0] % (2 * _COLUMNS) else None


def configs(codes: torch.Tensor, _: torch.Tensor, weight: torch.Tensor, *__: torch.Tensor) -> Sequence[Config]:
    """What is shared in clusters, and turns where there are tiles enough for them."""
    many = codes.numel() // codes.shape[-1] * weight.shape[0] >= _MANY_RESULTS
    return [{"alternate": many, "across": across, "along": along} for across, along in ((2, 1), (1, 2))]


def enter() -> None:
    """Adds the providers. The library must be loaded."""
    provide("quantised_linear", "cuda", quantised_linear, takes, configs)
    provide("quantised_linear_add", "cuda", quantised_linear, takes_add, configs)
    provide("quantised_linear_geglu", "cuda", quantised_linear_geglu, takes_geglu, configs)
